"""What is known of a model, from all of its records together."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from record_factory import make_record, make_samples, make_stored

from robench.records import JUDGED, Flag
from robench.regression_check import Verdict, check
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.plots.accuracies import accuracy_by_attack
from robench.results import RecordFilter, StoredRecord

ROW = "SSSSB"
"""Of the row that is looked at: four of five survive its one attack."""


def best(*others: StoredRecord, row: str = ROW, **about: Any) -> float:
    """The best known accuracy of ``row``, under Linf-0.2, beside other records."""
    own = make_stored(row, attack="aa", **about)
    frame = build_leaderboard([own], known=[own, *others])
    assert frame.loc[0, "robust_acc"] == 100 * row.count("S") / len(row)
    return float(frame.loc[0, "best_known_acc"])


def sized(letters: str, sizes: list[float | None], **about: Any) -> StoredRecord:
    """A record whose perturbations have these sizes."""
    samples = [
        sample.model_copy(update={"perturbation_size": size})
        for sample, size in zip(make_samples(letters), sizes, strict=True)
    ]
    return StoredRecord.of(make_record(samples, **about), samples)


def test_alone_it_is_the_rows_own_number() -> None:
    assert best() == 80


def test_finds_of_other_attacks_seeds_and_smaller_radii_count() -> None:
    assert best(make_stored("BSSSS", attack="x")) == 60
    assert best(make_stored("BSSSS", seed=3)) == 60
    assert best(make_stored("BSSSS", threat="Linf-1/255")) == 60
    assert best(make_stored("BSSSS", attack="x"), make_stored("SBSSS", seed=3)) == 40
    assert best(make_stored("SSSSB", attack="x")) == 80


@pytest.mark.parametrize(
    "about",
    [{"model": "another"}, {"threat": "L2-0.2"}, {"dataset": "letters"}],
    ids=["model", "norm", "data"],
)
def test_finds_of_another_model_norm_or_data_set_do_not(about: dict[str, Any]) -> None:
    assert best(make_stored("BBBBB", **about)) == 80


def test_of_a_larger_radius_the_sizes_decide() -> None:
    """0.2 as an image in float32 has it may lie a rounding above; no size is no find."""
    just = 0.2 + 2.0**-25
    found = sized("BBBBB", [0.1, just, 0.2001, None, math.nan], threat="Linf-0.5")
    assert best(found) == 40
    assert best(sized("BBBBB", [0.3] * 5, threat="Linf-0.5")) == 80


def test_other_parts_of_the_same_data_count_sample_by_sample() -> None:
    """The first five of eight samples are the row's; the others are not its own."""
    assert best(make_stored("BSSSSBBB", attack="x")) == 60
    assert best(make_stored("BB", attack="x")) == 40


def test_an_id_alone_does_not_make_the_same_sample() -> None:
    """Of other arrays under one name the labels, or what the model says of them, differ."""
    samples = make_samples("BBB")
    other_label = samples[0].model_copy(
        update={"label": 1, "clean_prediction": 1, "adv_prediction": 0}
    )
    other_pixels = samples[1].model_copy(update={"clean_margin": 1.4})
    rounded = samples[2].model_copy(update={"clean_margin": 1.5 + 1e-6})
    mixed = [other_label, other_pixels, rounded]
    assert best(StoredRecord.of(make_record(mixed), mixed)) == 60


def test_what_only_it_misclassifies_without_an_attack_is_no_find() -> None:
    assert best(make_stored("CESSS", attack="x")) == 80


def test_it_is_never_above_the_rows_own_number_and_errored_is_not_robust() -> None:
    assert best(make_stored("SSSSS", attack="x"), row="CBESS") == 40


@pytest.mark.parametrize("name", ["judged_by_draws", "randomised", "buffers_changed"])
def test_chance_does_not_lower_it(name: str) -> None:
    """Verdicts that do not repeat: no number of their own row, no finds for others."""
    flag = Flag(name=name, severity="severe", evidence="7 passes differ")
    assert best(make_stored("BBBBB", attack="x", flags=[flag])) == 80
    assert math.isnan(best(make_stored("BSSSS", attack="x"), flags=[flag]))


def test_filters_choose_rows_not_what_is_known_of_them() -> None:
    records = [make_stored(ROW, attack="aa"), make_stored("BBSSS", attack="aa", seed=1)]
    frame = build_leaderboard(records, RecordFilter(seed=0))
    assert list(frame["robust_acc"]) == [80]
    assert list(frame["best_known_acc"]) == [40]


def judged(letters: str, **about: Any) -> StoredRecord:
    """A record of inputs from elsewhere."""
    return make_stored(letters, attack="judged-file", kind=JUDGED, **about)


def test_judged_inputs_lower_the_best_known_number_and_no_other() -> None:
    frame = build_leaderboard(
        [make_stored(ROW, model="a"), judged("BBESS", model="a"), make_stored(ROW, model="b")]
    ).set_index("model")
    assert list(frame["robust_acc"]) == [80, 80]
    assert list(frame["best_known_acc"]) == [40, 80]
    assert list(frame["rank"]) == [1, 1]
    assert frame.loc["a", "judged_file_acc"] == 40
    assert pd.isna(frame.loc["b", "judged_file_acc"])


def test_judged_inputs_alone_are_shown_and_never_ranked() -> None:
    frame = build_leaderboard([judged("BSSSS")])
    assert (frame.loc[0, "robust_acc"], frame.loc[0, "validity"]) == (80, "judged_only")
    assert pd.isna(frame.loc[0, "rank"])


def test_judged_inputs_are_no_bar_among_the_attacks() -> None:
    """One model's would be one bar for all, and lower than the worst case beside it."""
    results = collect([make_stored(ROW, attack=a) for a in ("aa", "x")] + [judged("BBESS")])
    figure = accuracy_by_attack(results)
    assert figure is not None
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(legend) == ["aa", "clean", "worst case", "x"]


def test_a_baseline_with_judged_inputs_is_still_a_baseline() -> None:
    many = "S" * 300
    records = [make_stored(many, model=m) for m in "ab"] + [judged("B" + many[1:], model="b")]
    one, two = collect(records)
    outcome = check(one, two)
    assert (outcome.verdict, outcome.problems) == (Verdict.NOT_WORSE, ())
