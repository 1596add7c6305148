"""Attention by outcome and by class, the findings in words, and the overlays."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from panel_factory import make_panel
from record_factory import make_record, make_samples, make_stored

from robench.attention.metrics import attention_deviation
from robench.metric_catalogue import columns_shown
from robench.records import MetricSummary
from robench.reporting.findings import (
    association_sentences,
    attention_findings,
    attention_sentences,
    representation_findings,
)
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.metric_tables import attention_table, class_table, worst_classes
from robench.reporting.model_results import collect
from robench.reporting.page import build_page
from robench.reporting.plots.samples import attention_overlays
from robench.results import SamplePanel

NAN = math.nan
METRIC = {"attention_deviation": MetricSummary(mean=0.5)}


def results(letters: str, values: dict[str, list[float]], **kwargs):
    """One model; sample i has class i mod ``classes``."""
    return collect([make_stored(letters, values=values, metrics=METRIC, **kwargs)])


def test_means_by_outcome_leave_out_what_is_undefined_or_not_judged() -> None:
    # A clean error and an errored sample have values that must not count.
    values = {"attention_deviation": [0.1, 0.3, NAN, 0.9, 0.5, 7.0, 7.0]}
    (row,) = attention_table(results("BBBSSCE", values)).to_dict("records")
    assert row["mean"] == pytest.approx((0.1 + 0.3 + 0.9 + 0.5) / 4)
    assert row["mean_broken"] == pytest.approx(0.2)
    assert row["mean_survived"] == pytest.approx(0.7)
    assert (row["n"], row["n_broken"], row["n_survived"]) == (4, 2, 2)


def test_means_over_nothing_are_undefined() -> None:
    (row,) = attention_table(results("SS", {"attention_deviation": [0.25, 0.75]})).to_dict(
        "records"
    )
    assert (row["mean"], row["n_broken"]) == (0.5, 0)
    assert math.isnan(row["mean_broken"])


def test_a_model_without_metrics_has_no_rows() -> None:
    assert attention_table(collect([make_stored("SB")])).empty


def test_class_table_by_hand() -> None:
    # Classes in turn: class 0 has samples 0, 2, 4, class 1 has 1, 3, 5.
    values = {
        "attention_deviation": [0.2, 0.6, 0.4, 0.8, NAN, 9.0],
        "attention_coverage_clean": [0.9, 0.3, 0.7, 0.5, NAN, 9.0],
        "attention_empty": [0, 0, 0, 0, 1, 0],
    }
    table = class_table(results("SBSSBC", values)).set_index("class")
    assert list(table.index) == ["class 0", "class 1"]
    assert table["n"].tolist() == [3, 3]
    assert table["clean_acc"].tolist() == pytest.approx([100, 200 / 3])
    assert table["robust_acc"].tolist() == pytest.approx([200 / 3, 100 / 3])
    assert (table["robust_acc_low"] < table["robust_acc"]).all()
    assert (table["robust_acc"] < table["robust_acc_high"]).all()
    assert table["n_metrics"].tolist() == [3, 2]
    assert table["attention_deviation"].tolist() == pytest.approx([0.3, 0.7])
    assert table["attention_coverage_clean"].tolist() == pytest.approx([0.8, 0.4])
    assert table["attention_empty"].tolist() == [1, 0]
    assert table["alignment"].isna().all()
    assert table["worst"].tolist() == [False, True]


def test_the_worst_class_follows_each_metrics_direction() -> None:
    values = {
        "attention_deviation": [0.2, 0.6, 0.2, 0.6],
        "attention_coverage_clean": [0.1, 0.3, 0.1, 0.3],
    }
    (row,) = worst_classes(class_table(results("SSBS", values))).to_dict("records")
    assert (row["robust_acc_class"], row["robust_acc"]) == ("class 0", 50.0)
    assert (row["attention_deviation_class"], row["attention_deviation"]) == ("class 1", 0.6)
    assert row["attention_coverage_clean_class"] == "class 0"
    assert row["alignment_class"] is None
    assert math.isnan(row["alignment"])


def test_models_without_metrics_still_have_classes() -> None:
    table = class_table(collect([make_stored("SB")]))
    assert table["robust_acc"].tolist() == [100.0, 0.0]
    assert table["n_metrics"].tolist() == [0, 0]
    assert table[list(columns_shown("by_class"))].isna().all(axis=None)
    assert class_table([]).empty
    assert worst_classes(class_table([])).empty


def findings() -> tuple[pd.DataFrame, pd.DataFrame]:
    """One model for which deviation holds, one for which it is reversed, one undecided."""
    low, high = np.linspace(0.1, 0.4, 20), np.linspace(0.6, 0.9, 20)
    found = collect(
        [
            make_stored(
                "B" * 20 + "S" * 20,
                model=model,
                values={"attention_deviation": np.concatenate(columns)},
                metrics=METRIC,
            )
            for model, columns in (
                ("yes", (high, low)),
                ("no", (low, high)),
                ("even", (low, low)),
            )
        ]
    )
    return attention_findings(found), representation_findings(found)


def test_sentences_say_what_holds_and_what_does_not() -> None:
    attention, associations = findings()
    sentences = attention_sentences(attention)
    assert len(sentences) == 3
    (deviation,) = [s for s in sentences if "deviates" in s]
    for part in (
        "of 3 models",
        "holds for 1 (yes)",
        "reversed for 1 (no)",
        "not shown for 1 (even)",
    ):
        assert part in deviation
    (scatter,) = [s for s in sentences if "scatters" in s]
    assert "holds" not in scatter
    assert "undefined for 3 (even, no, yes)" in scatter
    said = association_sentences(associations)
    assert [("alignment" in s, "exclusion" in s) for s in said] == [(True, False), (False, True)]
    assert all("undefined" in s and "Spearman" not in s for s in said)


def test_the_page_says_it_too_and_names_the_worst_classes() -> None:
    stored = make_stored(
        "SBSS", values={"attention_deviation": [0.1, 0.9, 0.1, 0.8]}, metrics=METRIC
    )
    attention, associations = findings()
    page = build_page(
        build_leaderboard([stored]),
        tables={
            "findings": attention,
            "associations": associations,
            "per_class": class_table(collect([stored])),
        },
    )
    for text in (
        *("holds for 1 (yes)", "reversed for 1 (no)", "Classes that come off worst"),
        *("highest attention deviation", "lowest attention coverage (clean)", "0.850"),
    ):
        assert text in page, text


@pytest.mark.parametrize("grid", [4, 7])
def test_overlays_show_the_deviation_that_the_metric_gives(grid: int) -> None:
    panel = make_panel(3, grid=grid)
    figure = attention_overlays(panel, make_record(make_samples("SB"), classes=10))
    assert figure is not None
    axes = np.array(figure.axes).reshape(3, 5)
    expected = attention_deviation(
        torch.from_numpy(panel.clean_maps), torch.from_numpy(panel.adv_maps)
    )
    shown = [cell.get_xlabel() for cell in axes[:, 4]]
    # The third adversarial map is empty.
    assert shown == ["" if v.isnan() else f"deviation {v:.2f}" for v in expected]
    assert [text.get_text() for text in axes[2, 4].texts] == ["undefined"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["clean only", "both", "adversarial only"]


def test_overlays_colour_each_cell_by_whose_it_is() -> None:
    maps = np.zeros((2, 1, 4, 4))
    maps[0, 0, 0, :2] = 1  # clean: cells (0, 0) and (0, 1)
    maps[1, 0, 0, 1:3] = 1  # adversarial: (0, 1) and (0, 2)
    image = np.zeros((1, 8, 8, 1), dtype=np.float32)
    zero = np.zeros(1, dtype=np.int64)
    panel = SamplePanel(("a",), image, image, maps[0], maps[1], zero, zero, zero)
    figure = attention_overlays(panel, make_record(make_samples("SB")))
    assert figure is not None
    cells = figure.axes[4].images[1]
    codes = np.ma.filled(cells.get_array(), 0)
    assert codes[0].tolist() == [1, 2, 3, 0]
    assert not codes[1:].any()
    assert figure.axes[4].get_xlabel() == "deviation 0.67"


def test_no_samples_no_overlays() -> None:
    assert attention_overlays(make_panel(0), make_record(make_samples("SB"))) is None
