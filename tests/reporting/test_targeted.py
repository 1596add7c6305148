"""Targeted success: worked out by hand, kept apart from robust accuracy, and seen."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from record_factory import make_record, make_samples, make_stored

from robench.errors import CorruptRecordError, UsageError
from robench.records import Outcome, SampleOutcome
from robench.regression_check import check, check_markdown, leaderboard_row
from robench.reporting.compare import compare_models, comparison_markdown
from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
from robench.reporting.model_results import ModelResult, collect
from robench.reporting.page import build_page
from robench.reporting.plots.targets import targeted_success_matrix
from robench.reporting.publish import publish
from robench.reporting.targeted import easiest_pairs, target_matrix, targeted_table
from robench.results import RecordFilter, Store, StoredRecord
from robench.results.consistency import check_consistency

NEXT, FIXED, ALL = (f"Linf-0.2-targeted-{rule}" for rule in ("next", "1", "all"))


def next_target(letters: str, classes: int = 3, **about: Any) -> StoredRecord:
    """One sample a letter, of classes in turn, each to be taken for the next one."""
    targets = [(number + 1) % classes for number in range(len(letters))]
    about = {"threat": NEXT, "values": {"target": targets}} | about
    return make_stored(letters, classes=classes, **about)


def with_all_targets(rows: list[tuple[int, set[int]]], classes: int = 3) -> StoredRecord:
    """A sample for each (label, targets reached)."""
    samples = []
    for number, (label, reached) in enumerate(rows):
        values = {f"reached_{c}": float(c in reached) for c in range(classes) if c != label}
        shown = min(reached, default=(label + 1) % classes)
        samples.append(
            SampleOutcome(
                sample_id=f"toy/{number:05d}",
                label=label,
                outcome=Outcome.BROKEN if reached else Outcome.SURVIVED,
                clean_prediction=label,
                clean_margin=1.0,
                adv_prediction=shown if reached else label,
                adv_margin=-0.5 if reached else 0.5,
                broken_by="pgd-20" if reached else None,
                values=values | {"target": float(shown)},
            )
        )
    return StoredRecord.of(make_record(samples, threat=ALL, classes=classes), samples)


def targeted(*records: StoredRecord) -> list[ModelResult]:
    return collect(records, RecordFilter(goal="targeted"))


def fixed_target() -> StoredRecord:
    """Labels 0 1 2 0 1 2; those of class 1 are at the target; one clean error is there already."""
    samples = [
        s.model_copy(update={"outcome": Outcome.AT_TARGET, "adv_prediction": None})
        if s.label == 1
        else s.model_copy(update={"values": {"target": 1.0}})
        for s in make_samples("BSSCSS", classes=3)
    ]
    return StoredRecord.of(make_record(samples, threat=FIXED, classes=3), samples)


def test_success_is_of_the_attacked_and_robust_of_all_that_have_a_target() -> None:
    table = targeted_table(
        targeted(next_target("BBSSSCCE", attack="a"), next_target("SBSSBCCS", attack="b"))
    )
    assert table["attack"].tolist() == ["any", "a", "b"]
    assert table["attacked"].tolist() == [5, 5, 6]
    assert table["reached"].tolist() == [3, 2, 2]
    assert table["n"].tolist() == [8, 8, 8]
    assert table["targeted_success"].tolist() == pytest.approx([60.0, 40.0, 100 / 3])
    assert table["pair_success"].tolist() == pytest.approx([60.0, 40.0, 100 / 3])
    assert table["targeted_robust_acc"].tolist() == [25.0, 37.5, 50.0]
    assert table["validity"].tolist()[0].startswith("errored:1")
    assert (table["targets"] == "next").all()
    first = table.iloc[0]
    assert first["targeted_success_low"] < 60 < first["targeted_success_high"]


def test_samples_of_the_target_class_are_in_no_denominator() -> None:
    (result,) = targeted(fixed_target())
    assert result.n == 4
    row = targeted_table([result]).iloc[0]
    assert (row["n"], row["attacked"], row["reached"]) == (4, 3, 1)
    assert row["targeted_success"] == pytest.approx(100 / 3)
    assert row["targeted_robust_acc"] == 50.0
    assert row["clean_acc"] == 75.0


def test_of_all_targets_one_is_enough_for_the_sample_and_each_counts_for_its_pair() -> None:
    stored = with_all_targets([(0, {1, 2}), (0, {2}), (1, set()), (2, {0})])
    check_consistency(stored)
    table = targeted_table(targeted(stored))
    assert table["targeted_success"].iloc[0] == 75.0
    assert table["pair_success"].iloc[0] == 50.0
    matrix = target_matrix(targeted(stored)).set_index(["class", "target"])
    rates = matrix["targeted_success"].unstack().to_numpy()
    np.testing.assert_array_equal(
        rates, [[math.nan, 50.0, 100.0], [0.0, math.nan, 0.0], [100.0, 0.0, math.nan]]
    )
    assert matrix["attacked"].unstack().to_numpy().tolist() == [[0, 2, 2], [1, 0, 1], [1, 1, 0]]
    easiest = easiest_pairs(matrix.reset_index(), 2)
    assert easiest[["class", "target"]].to_numpy().tolist() == [
        ["class 0", "class 2"],
        ["class 2", "class 0"],
    ]


def test_the_matrix_is_the_union_over_attacks_and_empty_where_nothing_was_tried() -> None:
    results = targeted(next_target("BSSSSC", attack="a"), next_target("SSSBSC", attack="b"))
    matrix = target_matrix(results).set_index(["class", "target"])
    assert matrix.loc[("class 0", "class 1"), ["attacked", "reached"]].tolist() == [2, 2]
    assert matrix.loc[("class 2", "class 0"), "attacked"] == 1
    assert math.isnan(matrix.loc[("class 0", "class 2"), "targeted_success"])
    assert targeted_success_matrix(results) is not None
    assert targeted_success_matrix(targeted(next_target("CCC"))) is None


def test_targeted_and_untargeted_are_never_in_one_table() -> None:
    plain, aimed = make_stored("BBSC", classes=3), next_target("SSSC")
    board = build_leaderboard([plain, aimed])
    known = build_leaderboard([plain], known=[plain, aimed])
    assert leaderboard_csv(board) == leaderboard_csv(known)
    assert len(board) == 1
    assert board["robust_acc"].tolist() == [25.0]
    assert len(collect([plain, aimed])) == 1
    assert build_leaderboard([aimed], RecordFilter(goal="targeted")).empty
    assert [r.group.written for r in targeted(plain, aimed)] == [NEXT]
    assert targeted_table(targeted(plain)).empty


def test_a_targeted_find_is_a_known_misclassification() -> None:
    """Whatever it was taken for: the target, or on the way there another class."""
    plain = make_stored("SSSS", classes=3)
    samples = make_samples("BSSS", classes=3)
    samples[1] = samples[1].model_copy(update={"adv_prediction": 0})
    samples = [
        s.model_copy(update={"values": {"target": float((s.label + 1) % 3)}}) for s in samples
    ]
    aimed = StoredRecord.of(make_record(samples, threat=NEXT, classes=3), samples)
    check_consistency(aimed)
    board = build_leaderboard([plain, aimed])
    assert board["robust_acc"].tolist() == [100.0]
    assert board["best_known_acc"].tolist() == [50.0]


def test_goals_are_not_compared_with_each_other() -> None:
    (plain,), (aimed,) = collect([make_stored("BBSC")]), targeted(next_target("BBSC", 2, model="b"))
    for call in (lambda: compare_models(plain, [aimed]), lambda: check(aimed, plain)):
        with pytest.raises(UsageError, match=r"targeted-next.*"):
            call()
    (other,) = targeted(next_target("BBSC", 2, model="b", threat="Linf-0.2-targeted-all"))
    with pytest.raises(UsageError, match="targeted-all"):
        compare_models(aimed, [other])


def test_the_same_goal_is_compared_under_its_own_names(tmp_path: Path) -> None:
    one, two = targeted(next_target("BBSC", model="a"), next_target("BSSC", model="b"))
    found = compare_models(one, [two])
    names = found.table["quantity"].tolist()
    assert names[:2] == ["clean_acc", "targeted_robust_acc"]
    assert "targeted_pgd_20_acc" in names
    assert not {"robust_acc", "pgd_20_acc", "worst_class_robust_acc"} & set(names)
    assert "targeted_robust_acc" in comparison_markdown(found)
    outcome = check(two, one)
    assert any("not brought to its target" in note for note in outcome.notes)
    assert [item.quantity for item in outcome.criteria][:3] == [
        *("targeted_robust_acc", "clean_acc", "targeted_worst_class_robust_acc")
    ]
    assert "| robust_acc |" not in check_markdown(outcome)
    path = tmp_path / "board.csv"
    path.write_bytes(leaderboard_csv(build_leaderboard([make_stored("BBSC", model="a")])))
    with pytest.raises(UsageError, match="a leaderboard's row is of untargeted attacks"):
        leaderboard_row(path, "a", one)


def test_filters_by_goal_and_targets() -> None:
    records = [make_stored("BS").record, next_target("BS").record, fixed_target().record]
    plain, aimed, fixed = (r.model_copy() for r in records)
    assert RecordFilter().matches(aimed)
    assert [RecordFilter(goal="targeted").matches(r) for r in records] == [False, True, True]
    assert [RecordFilter(goal="untargeted").matches(r) for r in records] == [True, False, False]
    by_rule = RecordFilter(goal="targeted", targets="next")
    assert (by_rule.matches(aimed), by_rule.matches(fixed), by_rule.matches(plain)) == (
        True,
        False,
        False,
    )
    name = fixed.dataset.class_names[1]
    assert RecordFilter(goal="targeted", targets=name).matches(fixed)
    assert RecordFilter(goal="targeted", targets=1).matches(fixed)
    with pytest.raises(UsageError, match="without their goal"):
        RecordFilter(targets="next")


@pytest.mark.parametrize("change", ["broken", "survived", "at_target"])
def test_records_that_contradict_themselves(change: str) -> None:
    stored = fixed_target() if change == "at_target" else next_target("BS")
    samples = list(stored.samples)
    if change == "broken":  # not at its target
        samples[0] = samples[0].model_copy(update={"adv_prediction": 2})
    elif change == "survived":  # yet at its target
        samples[1] = samples[1].model_copy(update={"adv_prediction": 2})
    else:
        samples[1] = samples[1].model_copy(update={"outcome": Outcome.SURVIVED})
    record = make_record(samples, threat=str(stored.record.threat_model), classes=3)
    check_consistency(stored)
    with pytest.raises(CorruptRecordError, match="outcome of a sample is not what"):
        check_consistency(StoredRecord.of(record, samples))


def test_a_target_that_is_no_class() -> None:
    for threat, target in (("Linf-0.2-targeted-7", 1.0), (NEXT, 7.0), (NEXT, 0.5)):
        stored = make_stored("SS", classes=3, threat=threat, values={"target": [target, 2.0]})
        with pytest.raises(CorruptRecordError, match="a target is none of the classes"):
            check_consistency(stored)


@pytest.mark.usefixtures("saved_unseen")
def test_a_folder_shows_what_was_attacked_with_targets(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plain = make_stored("BBSC")
    store.write(plain.record, plain.samples)
    publish(store, plots=False)
    assert not (tmp_path / "targeted.csv").exists()
    board = (tmp_path / "leaderboard.csv").read_bytes()
    aimed = next_target("BBSCSS")
    store.write(aimed.record, aimed.samples)
    publish(store, plots=False)
    assert (tmp_path / "leaderboard.csv").read_bytes() == board
    store.delete(plain.record.key)
    files = publish(store, plots=True).files
    table = pd.read_csv(tmp_path / "targeted.csv")
    assert table["reached"].tolist() == [2, 2]
    assert len(pd.read_csv(tmp_path / "target_matrix.csv")) == 9
    drawn = {
        path.relative_to(tmp_path / "plots").parts[0] for path in files if "plots" in path.parts
    }
    (folder,) = [name for name in drawn if "targeted" in name]
    assert {p.stem for p in (tmp_path / "plots" / folder).iterdir()} == {"targeted_success"}
    page = (tmp_path / "index.html").read_text()
    assert "Pairs of classes" in page
    assert "led across most often" in page


def test_a_page_of_targeted_attacks_alone_has_records() -> None:
    results = targeted(next_target("BS"))
    page = build_page(build_leaderboard([]), tables={"targeted": targeted_table(results)})
    assert "There are no records yet" not in page
