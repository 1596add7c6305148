from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from panel_factory import make_panel
from record_factory import make_record, make_samples, make_stored

from robench.records import MetricSummary
from robench.reporting.catalogue import reports
from robench.reporting.compare import compare_models
from robench.reporting.export import group_slug
from robench.reporting.findings import attention_findings, representation_findings
from robench.reporting.model_results import ModelResult, collect
from robench.reporting.plots import render
from robench.reporting.plots.accuracies import (
    accuracy_by_attack,
    accuracy_heat_map,
    difference_plot,
)
from robench.reporting.plots.confusion import confusion, confusion_under_attack
from robench.reporting.plots.curves import security_curves
from robench.reporting.plots.distributions import attention_distributions, feature_distances
from robench.reporting.plots.palette import look
from robench.reporting.plots.render import render_plots
from robench.reporting.plots.robust_against import (
    clean_against_robust,
    frontier,
    robust_against_metric,
)
from robench.reporting.plots.samples import resisted_by_one, sample_panel
from robench.reporting.plots.style import Style, save, using
from robench.results import Store, StoredRecord
from robench.text import file_name

NAMES = [
    *("standard", "pgd-at", "trades", "mart", "aerp", "agkd-bml", "small", "vit-pgd-at"),
    *("ancra-resnet18-reverse-attention", "Wang2023Better_WRN-70-16"),
]


def results_for(names: list[str], n: int = 60, threat: str = "Linf-0.2") -> list[ModelResult]:
    return list(_results(tuple(names), n, threat))


@cache
def _results(names: tuple[str, ...], n: int, threat: str) -> list[ModelResult]:
    records = []
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        kept = round(n * (number + 1) / (len(names) + 1))
        letters = "S" * kept + "B" * (n - kept - 2) + "CC"
        broken = np.array([letter == "B" for letter in letters])
        values = {
            "attention_deviation": np.clip(0.3 + 0.3 * broken + rng.normal(0, 0.1, n), 0, 1),
            "attention_scatter_increase": rng.normal(0, 0.1, n),
            "alignment": rng.beta(2, 20, n),
            "exclusion": rng.beta(8, 6, n),
        }
        metrics = {k: MetricSummary(mean=float(v.mean()), n=n) for k, v in values.items()}
        for attack in ("autoattack", "cw", "fgsm", "pgd-20"):
            records.append(
                make_stored(
                    letters,
                    model=name,
                    attack=attack,
                    classes=10,
                    threat=threat,
                    values=values if attack == "pgd-20" else None,
                    metrics=metrics if attack == "pgd-20" else None,
                )
            )
    return collect(records)


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of visible texts that share more than a hair's breadth."""
    figure.draw_without_rendering()
    # Ticks outside an axis' view are objects with a place too, but nobody sees them.
    unseen = {
        id(tick.label1)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [t for t in figure.findobj(Text) if isinstance(t, Text) and id(t) not in unseen]
    boxes = [
        (t.get_text(), t.get_window_extent().shrunk(0.9, 0.9))
        for t in texts
        if t.get_visible() and t.get_text().strip()
    ]
    return [(one, two) for (one, a), (two, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]


FIGURES = {
    "accuracy_by_attack": accuracy_by_attack,
    "accuracy_heat_map": accuracy_heat_map,
    "clean_against_robust": clean_against_robust,
    "robust_against_deviation": partial(robust_against_metric, name="attention_deviation"),
    "robust_against_exclusion": partial(robust_against_metric, name="exclusion"),
    "attention_distributions": attention_distributions,
    "feature_distances": feature_distances,
}


@pytest.mark.parametrize(
    "name",
    [
        # Drawn by the function that draws the deviation.
        pytest.param(name, marks=pytest.mark.slow if name == "robust_against_exclusion" else ())
        for name in FIGURES
    ],
)
@pytest.mark.parametrize("models", [pytest.param(1, marks=pytest.mark.slow), 10])
def test_no_two_labels_overlap_and_conditions_are_named(name: str, models: int) -> None:
    results = results_for(NAMES[-models:])
    figure = FIGURES[name](results)
    assert figure is not None
    assert overlapping(figure) == []
    title = figure.get_suptitle()
    for word in ("digits", "L∞", "0.2", "n = 60"):
        assert word in title
    shown = {t.get_text() for t in figure.findobj(Text)}
    assert {r.model.name for r in results} <= shown
    assert all(figure.bbox.padded(1).contains(*t.get_window_extent().max) for t in figure.texts)


@pytest.mark.parametrize("draw", FIGURES.values())
def test_nothing_to_draw_is_none(draw: object) -> None:
    assert draw([]) is None  # type: ignore[operator]


def test_dots_are_at_the_accuracies_best_model_first() -> None:
    results = collect(
        [
            *(make_stored("CSBBS", attack="a", model="weak"), make_stored("CSSSS", attack="a")),
            *(make_stored("CSSBS", attack="b", model="weak"), make_stored("CSSBS", attack="b")),
        ]
    )
    figure = accuracy_by_attack(results[::-1])
    assert figure is not None
    (axes,) = figure.axes
    named = {line.get_label(): line for line in axes.lines if line.get_label()[0] != "_"}
    across = {name: line.get_xdata().tolist() for name, line in named.items()}  # type: ignore[union-attr]
    assert across == {"worst case": [60, 40], "clean": [80, 80], "a": [80, 40], "b": [60, 60]}
    assert named["worst case"].get_ydata().tolist() == [0, 1]  # type: ignore[union-attr]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["toy", "weak"]
    low, high = results[0].robust_acc.low, results[0].robust_acc.high
    assert [low, high] in [list(line.get_xdata()) for line in axes.lines]
    assert f"60.0 ({low:.1f}–{high:.1f})" in {text.get_text() for text in axes.texts}


def test_the_heat_map_says_what_each_attack_leaves_and_what_nobody_tried() -> None:
    records = [make_stored("CSBBS", attack="a"), make_stored("CSSBS", attack="b")]
    figure = accuracy_heat_map(collect([*records, make_stored("SSSSS", attack="a", model="best")]))
    assert figure is not None
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["clean", "a", "b", "worst case"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["best", "toy"]
    cells = [text.get_text() for text in axes.texts]
    assert cells == ["100.0", "100.0", "–", "100.0", "80.0", "40.0", "60.0", "40.0"]


def test_the_frontier_is_what_nothing_is_better_than() -> None:
    points = [(99.0, 50.0), (90.0, 60.0), (95.0, 55.0), (90.0, 55.0), (95.0, 55.0), (99.0, 49.0)]
    assert frontier(points) == [1, 2, 4, 0]
    assert frontier([]) == []


def test_points_sit_where_the_accuracies_are_filled_on_the_frontier() -> None:
    good, bad = collect([make_stored("CSSBS", model="good"), make_stored("CSBBS", model="bad")])
    figure = clean_against_robust([bad, good])
    assert figure is not None
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    np.testing.assert_allclose(drawn["good"].get_xydata(), [[80, 60]])
    hollow = [
        drawn[name].get_markerfacecolor() != drawn[name].get_color() for name in ("good", "bad")
    ]
    assert hollow == [False, True]


def test_undefined_metrics_are_left_out_not_zero() -> None:
    gap = {"attention_deviation": [np.nan] * 4}
    metrics = {"attention_deviation": MetricSummary(mean=None)}
    results = collect([make_stored("SSBB", values=gap, metrics=metrics)])
    assert robust_against_metric(results, "attention_deviation") is None
    assert feature_distances(results) is None
    figure = attention_distributions(results)
    assert figure is not None
    assert {"-", "undefined"} <= {t.get_text() for t in figure.findobj(Text)}


def test_ten_looks_differ_also_in_greyscale() -> None:
    looks = [look(i) for i in range(10)]
    assert len({(k.colour, k.marker) for k in looks}) == 10
    assert len({k.marker for k in looks}) == 10


def test_confusion_counts_the_correctly_classified() -> None:
    samples = make_samples("SBSBCE", classes=3)
    (result,) = collect([StoredRecord.of(make_record(samples, classes=3), samples)])
    expected = np.zeros((3, 3), dtype=int)
    for sample in samples[:4]:
        expected[sample.label, sample.adv_prediction or 0] += 1
    np.testing.assert_array_equal(confusion(result, "pgd-20"), expected)
    figure = confusion_under_attack([result], "pgd-20")
    assert figure is not None
    assert overlapping(figure) == []
    (all_wrong,) = collect([make_stored("CC")])
    assert confusion_under_attack([all_wrong], "pgd-20") is None


def test_security_curves_go_from_clean_through_the_radii() -> None:
    results = [
        *results_for(["a"], threat="Linf-0.2"),
        *results_for(["a"], n=60, threat="Linf-0.1"),
    ]
    figure = security_curves(results, "pgd-20")
    assert figure is not None
    x, y = figure.axes[0].lines[0].get_data()
    np.testing.assert_allclose(x, [0, 0.1, 0.2])
    assert y[0] == pytest.approx(results[0].clean_acc.estimate)
    assert overlapping(figure) == []
    worst = security_curves(results)
    assert worst is not None
    radii = [result.robust_acc.estimate for result in reversed(results)]
    np.testing.assert_allclose(worst.axes[0].lines[0].get_ydata()[1:], radii)
    assert len(figure.axes) == 2
    assert len(worst.axes) == 1
    assert security_curves(results[:1], "pgd-20") is None
    assert security_curves(results, "no-such-attack") is None


@pytest.mark.parametrize("channels, grid", [(1, 8), (3, 4)])
def test_sample_panel_shows_all_rows(channels: int, grid: int) -> None:
    panel = make_panel(3, size=8, channels=channels, grid=grid)
    figure = sample_panel(panel, make_record(make_samples("SB"), classes=10))
    assert figure is not None
    assert overlapping(figure) == []
    texts = [t.get_text() for t in figure.findobj(Text)]
    assert texts.count("empty") == 1
    assert sum(t.startswith("✗") for t in texts) == 2
    perturbation = figure.axes[2].images[0].get_array()
    expected = np.clip(0.5 + (panel.adversarial[0] - panel.clean[0]) / 0.4, 0, 1)
    np.testing.assert_allclose(np.squeeze(perturbation), np.squeeze(expected), atol=1e-6)
    assert sample_panel(make_panel(0), make_record(make_samples("SB"))) is None


def test_drawing_leaves_matplotlib_as_it_was_and_bytes_repeat(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    written = []
    for name in ("one", "two"):
        figure = clean_against_robust(results_for(["a", "b", "c"]))
        assert figure is not None
        written.append([path.read_bytes() for path in save(figure, tmp_path / name)])
    assert written[0] == written[1]
    assert dict(matplotlib.rcParams) == before
    assert b"<dc:date>" not in written[0][1]


@pytest.mark.usefixtures("saved_unseen")
@pytest.mark.slow
def test_the_committed_figures_are_those_that_are_drawn_now(tmp_path: Path) -> None:
    """One of them tells: the places of its labels follow from the way it is laid out."""
    folder = Path(__file__).parents[2] / "results"
    results = collect(Store(folder).records())
    best_first = sorted(results, key=lambda r: (-r.robust_acc.estimate, r.model.id))
    with using(Style(dpi=150)):  # it decides the places too
        figure = accuracy_by_attack(best_first)
        assert figure is not None
        _, drawn = save(figure, tmp_path / "accuracy_by_attack")
    kept = folder / "plots" / group_slug(results[0].group) / drawn.name
    made_by = f"Matplotlib v{matplotlib.__version__}"
    if made_by not in kept.read_text():
        pytest.skip("drawn with another matplotlib")
    assert drawn.read_bytes() == kept.read_bytes()


@pytest.mark.usefixtures("saved_unseen")
def test_gallery_draws_what_changed_and_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = ("clean_against_robust", "confusion", "samples")
    few = {name: report for name, report in reports("figure").items() if name in shown}
    monkeypatch.setattr(render, "reports", lambda kind: few)
    store = Store(tmp_path / "store")

    def put(letters: str, **kwargs: object) -> None:
        samples = make_samples(letters)
        arrays = make_panel(1, size=4, grid=2).to_arrays()
        store.write(make_record(samples, **kwargs), samples, arrays=arrays)  # type: ignore[arg-type]

    put("SSBC", model="a")
    put("SBBC", model="b/odd name")
    folder = tmp_path / "plots"
    files = render_plots(collect(store.records()), folder)
    odd = file_name("b/odd name")
    names = sorted(f.stem for f in files if f.suffix == ".png")
    assert names == sorted(
        [
            "clean_against_robust",
            *("confusion_a", f"confusion_{odd}", "samples_a", f"samples_{odd}"),
        ]
    )
    assert {f.parent.name for f in files} == {"digits-Linf-0.2-n4-seed0"}
    stamps = {f: f.stat().st_mtime_ns for f in files}
    assert render_plots(collect(store.records()), folder) == files
    assert {f: f.stat().st_mtime_ns for f in files} == stamps
    put("SSSC", model="a")
    files[0].with_name(f"samples_{odd}.png").unlink()
    assert render_plots(collect(store.records()), folder) == files
    redrawn = {f.stem for f in files if f.stat().st_mtime_ns != stamps[f]}
    assert redrawn == set(names) - {f"confusion_{odd}"}
    panel = make_panel(1, size=4, grid=2)
    for damaged in (replace(panel, labels=panel.labels + 1), replace(panel, sample_ids=("x",))):
        record = store.read(store.keys()[0])
        store.write(record.record, record.samples, arrays=damaged.to_arrays())
        caught = render_plots(collect(store.records()), tmp_path / str(id(damaged)))
        assert len([path for path in caught if path.stem.startswith("samples_")]) == 2


@pytest.mark.usefixtures("saved_unseen")
def test_gallery_follows_the_code_and_forgets_models_that_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    confusions = {"confusion": reports("figure")["confusion"]}
    monkeypatch.setattr(render, "reports", lambda kind: confusions)
    folder = tmp_path / "plots"
    files = render_plots(results_for(["a", "b"]), folder)
    own = folder / files[0].parent.name / "confusion_of_mine.png"
    own.write_bytes(b"")
    stamps = {f: f.stat().st_mtime_ns for f in files}
    assert len(files) == 4
    assert render_plots(results_for(["a", "b"]), folder) == files
    assert {f: f.stat().st_mtime_ns for f in files} == stamps
    monkeypatch.setattr(render, "source_hash", lambda *_: "the drawing code was edited")
    assert render_plots(results_for(["a", "b"]), folder) == files
    assert all(f.stat().st_mtime_ns != stamps[f] for f in files)
    kept = render_plots(results_for(["b"]), folder)
    assert {f for f in files if f.exists()} == set(kept)
    assert {f.stem for f in kept} == {"confusion_b"}
    assert own.exists()


def test_a_strangers_manifest_deletes_nothing_outside(tmp_path: Path) -> None:
    folder, outside = tmp_path / "plots", tmp_path / "holiday.png"
    folder.mkdir()
    outside.write_bytes(b"mine")
    (folder / "manifest.json").write_text('{"../holiday": "0", "/etc/hosts": "0"}')
    render_plots([], folder)
    assert outside.exists()


def test_differences_are_where_the_table_says() -> None:
    baseline, *others = results_for(["a", "b", "c"])
    comparison = compare_models(baseline, others)
    figure = difference_plot(comparison)
    assert figure is not None
    assert overlapping(figure) == []
    points = [line for line in figure.axes[0].lines[1:] if line.get_linestyle() == "None"]
    drawn = [float(line.get_xdata()[0]) for line in points]
    shown = comparison.table[comparison.table["quantity"].str.endswith("_acc")]
    assert sorted(drawn) == pytest.approx(sorted(shown["difference"]))


def test_resisted_samples_are_shown_with_both_attacks() -> None:
    panel = make_panel(3, size=8)
    models = ("old", "new")
    figure = resisted_by_one(
        models,
        make_record(make_samples("SB"), classes=10),
        panel.sample_ids,
        panel.labels,
        panel.clean,
        (panel.adversarial, panel.clean),
        (panel.adv_predictions, panel.labels),
    )
    assert figure is not None
    assert overlapping(figure) == []
    texts = [t.get_text() for t in figure.findobj(Text)]
    assert sum(t.startswith("✗") for t in texts) == 2
    assert {"clean", "under attack: old", "under attack: new"} <= set(texts)
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), panel.clean[0, ..., 0])


def test_features_of_robust_models_are_correlated_over_models() -> None:
    def model(name: str, robust: int, alignment: float | None) -> StoredRecord:
        metrics = {
            "alignment": MetricSummary(mean=alignment),
            "exclusion": MetricSummary(mean=0.01 * ((7 * robust) % 5)),
        }
        return make_stored("S" * robust + "B" * (20 - robust), model=name, metrics=metrics)

    results = collect([model(f"m{k}", 2 * k, 1 - 0.1 * k) for k in range(7)])
    table = representation_findings(results).set_index("metric")
    assert table.loc["alignment", "verdict"] == "holds"
    assert table.loc["alignment", "spearman"] == -1
    assert table.loc["alignment", "p"] == pytest.approx(2 / 5040)
    assert table.loc["exclusion", "verdict"] == "not shown"
    gap = representation_findings(collect([model("a", 3, None)])).set_index("metric")
    assert gap.loc["alignment", "models"] == 0
    assert set(gap["verdict"]) == {"undefined"}


def test_a_groups_slug_is_a_file_name() -> None:
    (result,) = collect([make_stored("SB", threat="Linf-8/255", seed=3)])
    assert group_slug(result.group) == "digits-Linf-8_255-n2-seed3"


def test_findings_say_what_holds_and_what_does_not() -> None:
    n = 60
    letters = "B" * 30 + "S" * 28 + "CC"
    broken = np.array([letter == "B" for letter in letters], dtype=float)
    noise = np.tile([0.01, -0.01], n // 2)
    metrics = {"attention_deviation": MetricSummary(mean=0.5)}

    def record(model: str, effect: float, coverage: bool = False) -> StoredRecord:
        values = {"attention_deviation": effect * broken + noise}
        if coverage:
            values["attention_coverage_clean"] = 0.5 - 0.3 * broken + noise
        return make_stored(letters, model=model, values=values, metrics=metrics)

    results = collect(
        [
            record("holds", 0.3, True),
            record("nothing", 0.0),
            record("reversed", -0.3),
            make_stored(letters, model="without"),
        ]
    )
    table = attention_findings(results).set_index(["finding", "model"])
    assert list(table.loc["deviation", "verdict"]) == ["holds", "not shown", "reversed"]
    assert list(table.loc["incomplete_attention", "verdict"]) == ["holds", "undefined", "undefined"]
    row = table.loc[("deviation", "holds")]
    assert (row["n_broken"], row["n_survived"], row["auc"]) == (30, 28, 1.0)
    assert row["p_holm"] == pytest.approx(3 * row["p"])
    assert "without" not in table.index.get_level_values("model")
