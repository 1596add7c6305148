"""``robench plot`` and ``robench.plot``: which figure, of what, how large, in which format and colours."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from invoke_cli import invoke
from matplotlib.colors import to_rgb
from panel_factory import make_panel
from PIL import Image
from record_factory import make_record, make_samples, make_stored

import robench
from robench.errors import UnknownNameError, UsageError
from robench.reporting.catalogue import reports
from robench.reporting.plots import one_figure, palette
from robench.reporting.plots.style import Style
from robench.results import RecordFilter, Store, StoredRecord

WANTED = RecordFilter(eps="0.2")
PLOTS = Path(palette.__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two models under two attacks, one of them at a second radius."""
    store = Store(tmp_path_factory.mktemp("plots") / "results")
    for model, letters in (("good", "SSSBCS"), ("bad", "SBBBCS")):
        for attack in ("fgsm", "pgd-20"):
            samples = make_samples(letters)
            arrays = make_panel(1, size=4, grid=2).to_arrays() if attack == "pgd-20" else None
            store.write(make_record(samples, model=model, attack=attack), samples, arrays=arrays)
    samples = make_samples("SSSSCS")
    store.write(make_record(samples, model="good", threat="Linf-0.1"), samples)
    return store.folder


def records(folder: Path) -> list[StoredRecord]:
    return list(Store(folder).records())


def test_every_kind_is_listed_with_what_it_shows() -> None:
    listed = invoke("plot", "--kinds")
    assert listed.code == 0
    for name, report in reports("figure").items():
        assert re.search(rf"^{name} +{report.of} +{re.escape(report.summary)}$", listed.out, re.M)
        assert report.summary


def test_a_figure_has_the_size_the_format_and_the_title_that_are_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    base = ("plot", "accuracy-heat-map", "--results", folder, "--eps", "0.2")
    sized = (*base, "--width", 2, "--height", 1.5, "--dpi", 100, "--font-size", 5)
    done = invoke(*sized, "--out", tmp_path / "a.png")
    assert (done.code, done.out) == (0, f"{tmp_path / 'a.png'}\n")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (200, 150)
    assert invoke(*sized, "-o", tmp_path / "a.pdf").code == 0
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/CreationDate" not in content
    assert b"/Type3" not in content


def test_font_and_title_follow_the_style(folder: Path) -> None:
    def texts(style: Style) -> dict[str, float]:
        figure = one_figure.draw(
            "clean_against_robust", records(folder), ["good"], wanted=WANTED, style=style
        )
        assert figure.get_axes()[0].xaxis.label.get_family() == [style.font, "DejaVu Sans"]
        label = figure.get_axes()[0].xaxis.label.get_size()
        return {
            "title": len(figure.get_suptitle()),
            "label": label,
            "wide": figure.get_size_inches()[0],
        }

    small = texts(Style(font="serif", font_size=6, title=False))
    large = texts(Style(font="monospace", font_size=12))
    assert (small["title"], small["label"], large["label"]) == (0, 6, 12)
    assert large["title"] > 0
    assert large["wide"] == pytest.approx(2 * small["wide"])


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ("acuracy_by_attack",),
            "unknown kind of figure 'acuracy_by_attack'. Did you mean 'accuracy_by",
        ),
        ((), "no kind of figure is named"),
        (("accuracy_by_attack",), "these are 2: digits Linf-0.1, n = 6"),
        (("accuracy_by_attack", "godo"), "unknown model 'godo'. Did you mean 'good'?"),
        (("accuracy_by_attack", "good", "bad", "--eps", "9"), "there are no records for"),
        (("accuracy_by_attack", "--attack", "fgsm", "--eps", "0.2"), "is of all attacks"),
        (("confusion", "--eps", "0.2"), "is of one model, and there are 2: bad, good"),
        (
            ("confusion", "bad", "--attack", "pdg-20"),
            "unknown attack 'pdg-20'. Did you mean 'pgd-20'",
        ),
        (("traces", "bad"), "no record has what traces shows"),
        (("differences", "bad"), "one model alone cannot be compared"),
        (("confusion", "bad", "-o", "x.jpg"), "unknown format of a figure 'jpg'"),
        (("confusion", "bad", "--width", "nan"), "width is nan, it must be from 1 to 40"),
        (("confusion", "bad", "--dpi", "0"), "dpi is 0"),
        (("confusion", "bad", "--font", "Monospac"), "unknown font 'Monospac'. Did you mean"),
        (("targeted_success", "bad"), "there are no records for targeted_success"),
        (("confusion", "bad", "--goal", "targeted"), "confusion is of the goal untargeted"),
    ],
)
def test_wrong_wishes_are_refused_in_one_line_and_write_nothing(
    words: tuple[str, ...],
    said: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("plot", *words, "--results", folder)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_of_differences_the_first_named_is_the_baseline(folder: Path) -> None:
    for first, second in itertools.permutations(("good", "bad")):
        figure = one_figure.draw("differences", records(folder), [first, second], wanted=WANTED)
        assert figure.get_suptitle().startswith(f"Against {first}\n")


def test_one_models_figures_are_of_an_attack(folder: Path) -> None:
    for attack in ("fgsm", "pgd-20"):
        figure = one_figure.draw("confusion", records(folder), ["bad"], attack=attack)
        assert f"under {attack}\n" in figure.get_suptitle()
    assert (
        "bad under pgd-20"
        in one_figure.draw("samples", records(folder), ["bad"], attack="pgd-20").get_suptitle()
    )
    with pytest.raises(UsageError, match="no record under fgsm has what samples shows"):
        one_figure.draw("samples", records(folder), ["bad"], attack="fgsm")


def test_a_model_with_one_radius_is_a_point_beside_the_lines(folder: Path) -> None:
    figure = one_figure.draw("robust_against_eps", records(folder))
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    share = 100 / 6
    np.testing.assert_allclose(drawn["good"], [[0, 5 * share], [0.1, 5 * share], [0.2, 4 * share]])
    np.testing.assert_allclose(drawn["bad"], [[0.2, 2 * share]])


def test_from_python_of_a_folder_or_of_records(folder: Path, tmp_path: Path) -> None:
    figure = robench.plot(
        "accuracy_by_attack", folder, models=["good"], eps="0.2", width=3, out=tmp_path / "x.svg"
    )
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")
    assert figure.get_size_inches()[0] == 3
    assert robench.plot("confusion", [make_stored("SSB")]).get_axes()
    with pytest.raises(UnknownNameError, match="accuracy_heat_map"):
        robench.plot("heat_map", folder)
    with pytest.raises(UnknownNameError, match=r"unknown option 'widht'.*'width'"):
        robench.plot("confusion", folder, widht=3)


def _seen_by(rgb: npt.NDArray[np.float64], matrix: list[list[float]]) -> npt.NDArray[np.float64]:
    """CIELAB of linear colours as an eye sees them."""
    linear = np.clip(np.asarray(matrix) @ rgb, 0, 1)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ linear
        / np.array([0.9505, 1, 1.089])
    )
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes, 2009, at severity 1.
EYES = {
    "usual": [[1.0, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("eye", EYES)
def test_the_palette_is_told_apart_by_every_eye_and_from_paper(eye: str) -> None:
    srgb = [np.array(to_rgb(colour)) for colour in (*palette.SERIES, palette.WHITE)]
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in srgb]
    seen = [_seen_by(colour, EYES[eye]) for colour in linear]
    apart = [float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)]
    # 2.3 is what one just notices side by side.
    assert min(apart) > 10


def test_all_colours_are_in_the_palette() -> None:
    for path in PLOTS.glob("*.py"):
        if path.name != "palette.py":
            found = re.findall(
                r"#[0-9A-Fa-f]{6}|hatch|[\"'](?:black|white|cividis|viridis)[\"']", path.read_text()
            )
            assert found == [], path.name
