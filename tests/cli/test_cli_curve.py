"""``robench curve`` on a digits model, a few samples and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from invoke_cli import invoke

from robench.results import Store

pytestmark = pytest.mark.usefixtures("unexamined")

N = 5
SUITE = '[[attacks]]\nname = "{name}"\nattack = "{attack}"\nparams = {{ steps = 10 }}\n'


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with a run at two radii, then a curve."""
    folder = tmp_path_factory.mktemp("curve")
    suite = folder / "short.toml"
    suite.write_text(SUITE.format(name="fmn", attack="fmn"))
    common = ("pgd-at", "--n", N, "--device", "cpu", "--results", folder / "r")
    ran = invoke("run", *common, "--suite", "quick", "--eps", "0.2,0.3", "--no-plots")
    assert ran.code == 0, ran.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robench.reporting.plots.style._DPI", 40)
        return folder, invoke("curve", *common, "--suite", suite)


def test_it_prints_the_curve_at_the_records_radii(drawn: Any) -> None:
    _, done = drawn
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["0", "0.2", "0.3"]
    assert "curve and records agree" in done.out or f"more than n = {N} leaves open" in done.out


def test_it_writes_table_and_figure(drawn: Any) -> None:
    folder, _ = drawn
    assert all((folder / "r" / f"curve{suffix}").stat().st_size for suffix in (".png", ".svg"))
    frame = pd.read_csv(folder / "r" / "curve.csv")
    curve = frame[frame["kind"] == "curve"]
    assert curve["epsilon"].is_monotonic_increasing
    assert curve["robust_acc"].is_monotonic_decreasing
    assert set(frame[frame["kind"] == "point"]["source"]) == {"fgsm", "pgd-20", "worst_case"}


def test_the_record_counts_finds_within_its_radius_and_keeps_every_size(drawn: Any) -> None:
    folder, _ = drawn
    (stored,) = [s for s in Store(folder / "r").records() if s.record.attack.name == "fmn"]
    table = stored.table
    right = table["outcome"] != "clean_error"
    assert (table["minimum_size"][right] > 0).all()
    broken = table["outcome"] == "broken"
    assert (table["minimum_size"] <= 0.2 + 1e-6).tolist() == broken.tolist()
    assert (table["minimum_size"][broken] == table["perturbation_size"][broken]).all()


def test_a_second_time_nothing_is_computed(drawn: Any) -> None:
    folder, _ = drawn
    again = invoke(
        *("curve", "pgd-at", "--n", N, "--results", folder / "r", "--device", "cpu"),
        *("--suite", folder / "short.toml", "--out", folder / "elsewhere", "--json"),
    )
    assert "stored before" in again.err
    (curve,) = again.json["curves"]
    assert [row["eps"] for row in curve["at"]] == ["0", "0.2", "0.3"]
    name = "curve.csv"
    assert (folder / "elsewhere" / name).read_bytes() == (folder / "r" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--eps", "0.1,0.2"], "--eps holds 2 radii"),
        (["--attack", "fnm"], "unknown attack (suite minimum-norm, Linf) 'fnm'"),
        (["--attack", "pgd-20", "--suite", "quick"], "pgd-20 is no minimum-norm attack"),
        (["--suite", "quick"], "suite quick has no minimum-norm attack for Linf"),
        (["--eps", "0"], "eps must be positive"),
    ],
)
def test_what_gives_no_curve_is_refused(tmp_path: Path, words: list[str], says: str) -> None:
    done = invoke("curve", "pgd-at", "--n", 4, "--results", tmp_path / "r", *words)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "r").exists()
