from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from record_factory import make_record, make_samples, make_stored

from robench.errors import StoreError, UsageError
from robench.records import AttackSpec, AuditResult, Flag, MetricSummary, Suite
from robench.reporting.board import board_text
from robench.reporting.leaderboard import (
    NO_FLAG,
    as_written,
    attack_column,
    build_leaderboard,
    leaderboard_csv,
    read_leaderboard,
    with_clean_points,
)
from robench.reporting.model_results import collect
from robench.reporting.page import build_page
from robench.results import RecordFilter, Store, StoredRecord
from robench.statistics import wilson

STRONG = "S" * 80 + "B" * 15 + "C" * 5
WEAK = "S" * 10 + "B" * 88 + "C" * 2


def test_robust_means_survived_every_attack() -> None:
    row = build_leaderboard(
        [make_stored("CSSBS", attack="fgsm"), make_stored("CSBSS", attack="pgd-20")]
    ).iloc[0]
    assert row["robust_acc"] == 40
    assert row["fgsm_acc"] == row["pgd_20_acc"] == 60
    assert row["clean_acc"] == 80
    interval = wilson(2, 5).scaled(100)
    assert (row["robust_acc_low"], row["robust_acc_high"]) == (interval.low, interval.high)
    assert row["validity"] == NO_FLAG


@settings(deadline=None)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.lists(st.text("BSE", min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    st.randoms(),
)
def test_worst_case_equals_counting_by_hand(tables: list[str], random: object) -> None:
    records = []
    for number, letters in enumerate(tables):
        samples = make_samples(letters)
        record = make_record(samples, attack=f"a{number}")
        random.shuffle(samples)  # type: ignore[attr-defined]
        records.append(StoredRecord.of(record, samples))
    row = build_leaderboard(records).iloc[0]
    survived = [all(c == "S" for c in column) for column in zip(*tables, strict=True)]
    assert row["robust_acc"] == pytest.approx(100 * np.mean(survived), abs=1e-9)
    assert pd.isna(row["rank"]) == any("E" in t for t in tables)


def test_errored_is_not_robust_and_blocks_the_rank() -> None:
    frame = build_leaderboard(
        [make_stored("SSSE", model="a"), make_stored("SBBB", model="b")]
    ).set_index("model")
    assert pd.isna(frame.loc["a", "rank"])
    assert frame.loc["a", "robust_acc"] == 75
    assert frame.loc["a", "validity"] == "errored:1"
    said = Flag(name="errored_samples", severity="warning", evidence="1 of 4")
    flagged = build_leaderboard([make_stored("SSSE", flags=[said])])
    assert flagged["validity"].tolist() == ["errored:1"]
    assert frame.loc["b", "rank"] == 1


def test_ranks_tie_where_intervals_overlap() -> None:
    near = "S" * 78 + "B" * 17 + "C" * 5
    frame = build_leaderboard(
        [make_stored(t, model=m) for m, t in (("weak", WEAK), ("strong", STRONG), ("near", near))]
    )
    assert list(frame["model"]) == ["strong", "near", "weak"]
    assert list(frame["rank"]) == [1, 1, 3]


@settings(deadline=None)
@example([39, 52])
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_ranks_follow_from_the_columns(survivors: list[int]) -> None:
    records = [
        make_stored("S" * k + "B" * (60 - k), model=f"m{i}") for i, k in enumerate(survivors)
    ]
    frame = as_written(build_leaderboard(records))
    for _, row in frame.iterrows():
        above = sum(frame["robust_acc_low"] > row["robust_acc_high"])
        assert row["rank"] == 1 + above
    assert list(frame["robust_acc"]) == sorted(frame["robust_acc"], reverse=True)


def test_groups_are_ranked_apart_unless_asked() -> None:
    records = [
        make_stored(WEAK, model="a", threat="Linf-8/255"),
        make_stored(STRONG, model="a", threat="Linf-0.031"),
        make_stored(WEAK, model="b", threat="Linf-0.031"),
        make_stored(STRONG[:50], model="c", threat="Linf-0.031"),
        make_stored(STRONG, model="d", threat="Linf-0.031", seed=1),
        make_stored(STRONG, model="e", threat="Linf-0.031", data="b"),
    ]
    frame = build_leaderboard(records).set_index("model")
    assert list(frame.loc["a", "eps"]) == ["0.031", "8/255"]
    assert list(frame.loc["a", "rank"]) == [1, 1]
    assert [frame.loc[m, "rank"] for m in "bcde"] == [2, 1, 1, 1]
    together = build_leaderboard(records, together=True)
    assert list(together["rank"]) == [1, 2, 2, 2, 5, 5]
    filtered = build_leaderboard(
        records, RecordFilter(eps="8/255", norm="linf", dataset="digits", n=100, seed=0)
    )
    assert list(filtered["robust_acc"]) == [10]


def test_same_radius_written_twice_is_one_group() -> None:
    frame = build_leaderboard(
        [
            make_stored(STRONG, model="a", threat="Linf-0.2"),
            make_stored(WEAK, model="b", threat="Linf-1/5"),
        ]
    )
    assert list(frame["rank"]) == [1, 2]
    assert list(frame["eps"]) == ["0.2", "1/5"]


def test_lacking_an_attack_blocks_the_rank() -> None:
    records = [
        make_stored(WEAK, model="a", attack="pgd-20"),
        make_stored(WEAK, model="a", attack="autoattack"),
        make_stored(STRONG, model="b", attack="pgd-20"),
    ]
    frame = build_leaderboard(records).set_index("model")
    assert frame.loc["b", "validity"] == "missing:autoattack"
    assert pd.isna(frame.loc["b", "rank"])
    assert pd.isna(frame.loc["b", "autoattack_acc"])
    assert frame.loc["a", "rank"] == 1
    suite = Suite(name="s", attacks=(records[0].record.attack,))
    assert list(build_leaderboard(records, suite=suite)["rank"]) == [1, 2]
    wider = Suite(name="s", attacks=(records[0].record.attack, AttackSpec(name="cw", attack="cw")))
    assert list(build_leaderboard(records, suite=wider)["validity"]) == ["missing:cw"] * 2


def test_newest_of_two_records_counts_and_other_parameters_are_said() -> None:
    old = make_stored(STRONG, model="a", params={"steps": 10})
    newer = make_stored(WEAK, model="a")
    newer = StoredRecord(
        newer.record.model_copy(update={"created": "2026-02-01T00:00:00Z"}), newer.arrow
    )
    for order in itertools.permutations(
        [old, newer, make_stored(WEAK, model="b", params={"steps": 10})]
    ):
        frame = build_leaderboard(order).set_index("model")
        assert frame.loc["a", "robust_acc"] == 10
        assert frame.loc["b", "validity"] == "differs:pgd-20"
        assert list(frame["rank"].isna()) == [m == "b" for m in frame.index]


def test_flags_and_unstable_predictions_are_listed() -> None:
    flag = Flag(name="zero_gradients", severity="severe", evidence="12 of 100", count=12)
    frame = build_leaderboard(
        [make_stored("CSS", attack="a", flags=[flag]), make_stored("SCS", attack="b", flags=[flag])]
    )
    assert frame.loc[0, "validity"] == "unstable_clean:2;zero_gradients(severe)"
    assert frame.loc[0, "robust_acc"] == pytest.approx(100 / 3)
    assert frame.loc[0, "clean_acc"] == pytest.approx(100 / 3)


def test_what_an_audit_may_have_missed_is_said_in_points_of_accuracy() -> None:
    """5 % of 4 survivors out of 10 are 2 points; of two audits the larger bound."""

    def audit(bound: float | None) -> AuditResult:
        return AuditResult(
            survivors=4, audited=2, hits=0, escalated=False, missed_share_upper=bound
        )

    letters = "SSSSBBBBBB"
    records = [
        make_stored(letters, model="a", attack="fast", audit=audit(0.05)),
        make_stored(letters, model="a", attack="aa-core", audit=audit(0.025)),
        make_stored(letters, model="b", attack="fast", audit=audit(None)),
        make_stored(letters, model="b", attack="aa-core"),
        make_stored(letters, model="c", attack="fast"),
        make_stored(letters, model="c", attack="aa-core"),
    ]
    frame = build_leaderboard(records)
    assert frame.set_index("model")["audit_missed"].fillna(-1).to_dict() == {
        "a": 2.0,
        "b": 0.0,
        "c": -1.0,
    }
    assert "audit_missed" not in build_leaderboard(records[3:])
    assert "audit may have missed" in build_page(frame)
    heading, row = board_text(frame).splitlines()[1:3]
    place = heading.index("audit missed ≤")
    assert row[place : place + len("audit missed ≤")].strip() == "2.0"


def test_worst_class_is_named() -> None:
    # Labels alternate 0 1 0 1 …: class 1 loses two of three.
    row = build_leaderboard([make_stored("SBSBSS")]).iloc[0]
    assert row["worst_class"] == "class 1"
    assert row["worst_class_robust_acc"] == pytest.approx(100 / 3)


def test_metrics_come_from_the_declared_attack_and_gaps_stay_empty() -> None:
    def metrics(mean: float | None) -> dict[str, MetricSummary]:
        return {"attention_deviation": MetricSummary(mean=mean, mean_broken=0.123456, n=3)}

    frame = build_leaderboard(
        [
            make_stored("SB", model="a", attack="aa", metrics=metrics(0.9)),
            make_stored("SB", model="a", attack="pgd-20", metrics=metrics(0.25)),
            make_stored("BB", model="b", attack="aa", metrics=metrics(None)),
            make_stored("BB", model="b", attack="pgd-20"),
        ]
    ).set_index("model")
    assert list(frame["attention_attack"]) == ["pgd-20", "aa"]
    assert frame.loc["a", "attention_deviation"] == 0.25
    assert frame.loc["a", "attention_deviation_broken"] == 0.123456
    assert pd.isna(frame.loc["b", "attention_deviation"])
    assert "attention_deviation_survived" not in frame
    _, first, second = leaderboard_csv(frame.reset_index()).decode().splitlines()
    header = list(frame.reset_index().columns)
    assert first.split(",")[header.index("attention_deviation_broken")] == "0.1235"
    assert second.split(",")[header.index("attention_deviation")] == ""


def test_cost_is_the_sum_over_attacks() -> None:
    row = build_leaderboard([make_stored("SB", attack=a, seconds=1.26) for a in "ab"]).iloc[0]
    assert (row["forwards"], row["backwards"], row["seconds"]) == (12, 8, 2.52)


def test_what_is_printed_is_rounded_once() -> None:
    # 257 of 334 are 76.946 %: 76.95 with two digits, which with one would be 77.0.
    frame = build_leaderboard([make_stored("S" * 257 + "B" * 50 + "C" * 27)])
    assert board_text(frame).splitlines()[-1].split()[2] == "76.9"
    assert ",76.95," in leaderboard_csv(frame).decode()
    assert ">76.95<" in build_page(frame)
    assert as_written(frame)["robust_acc"][0] == 76.95
    # 1539 of 2000 are 76.95 % exactly.
    frame = build_leaderboard([make_stored("S" * 1539 + "B" * 461)])
    assert board_text(frame).splitlines()[-1].split()[2] == "77.0"


def test_csv_bytes_depend_on_the_records_only(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    samples = make_samples(STRONG, values={"alignment": [0.5] * len(STRONG)})
    for model, attack in itertools.product(["NA", "b", "c"], ["fgsm", "pgd-20"]):
        store.write(make_record(samples, model=model, attack=attack), samples)
    frame = build_leaderboard(store)
    path = tmp_path / "leaderboard.csv"
    path.write_bytes(leaderboard_csv(frame))
    reverse = build_leaderboard(reversed(list(store.records())))
    assert path.read_bytes() == leaderboard_csv(reverse)
    again = read_leaderboard(path)
    assert_frame_equal(again, as_written(frame), check_dtype=False)
    assert leaderboard_csv(again) == path.read_bytes()
    assert (
        b"robust_acc,robust_acc_low,robust_acc_high,best_known_acc,clean_acc,fgsm_acc,pgd_20_acc"
        in path.read_bytes()
    )


def test_damaged_record_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    samples = make_samples("SB")
    for model in "ab":
        store.write(make_record(samples, model=model), samples)
    store.path_of(store.keys()[0]).write_text("{")
    assert len(build_leaderboard(store)) == 1
    assert "left out" in caplog.text


def test_nothing_gives_an_empty_table() -> None:
    frame = build_leaderboard([])
    assert len(frame) == 0
    assert leaderboard_csv(frame).startswith(b"rank,model,defense")


def test_bad_filters_and_names_are_refused() -> None:
    with pytest.raises(UsageError, match="norm"):
        RecordFilter(norm="L7")
    with pytest.raises(UsageError, match="eps"):
        RecordFilter(eps="big")
    with pytest.raises(UsageError, match="share the column"):
        build_leaderboard([make_stored("SB", attack=a) for a in ("pgd-20", "pgd_20")])
    assert attack_column("clean") == "attack_clean_acc"


def test_records_on_other_samples_are_refused() -> None:
    one = make_stored("SB", attack="a")
    samples = [
        s.model_copy(update={"sample_id": f"other/{i}"}) for i, s in enumerate(make_samples("SB"))
    ]
    two = StoredRecord.of(make_record(samples, attack="b"), samples)
    with pytest.raises(StoreError, match="other samples"):
        build_leaderboard([one, two])


def test_intervals_are_those_of_the_outcomes() -> None:
    (result,) = collect([make_stored(STRONG)])
    assert result.robust_acc == wilson(80, 100).scaled(100)
    assert result.clean_acc == wilson(95, 100).scaled(100)
    assert result.attack_acc("pgd-20") == result.robust_acc
    assert result.attention_attack is None
    assert np.isnan(result.column("pgd-20", "attention_shift")).all()


def test_clean_points_stand_before_the_radii_and_are_the_clean_accuracy() -> None:
    records = [
        make_stored(letters, model=model, threat=f"Linf-{eps}")
        for model, eps, letters in (
            ("a", "0.1", "CSSSS"),
            ("a", "0.2", "CSBBS"),
            ("b", "0.1", "SSSBS"),
            ("b", "0.2", "SBBBB"),
        )
    ]
    board = build_leaderboard(records)
    frame = with_clean_points(board, records)
    assert list(zip(frame["eps"], frame["model"], frame["robust_acc"], strict=True)) == [
        *(("0", "b", 100.0), ("0", "a", 80.0)),
        *(("0.1", "b", 80.0), ("0.1", "a", 80.0), ("0.2", "a", 40.0), ("0.2", "b", 20.0)),
    ]
    limits = wilson(4, 5).scaled(100)
    low, high = frame["robust_acc_low"][1], frame["robust_acc_high"][1]
    assert (low, high) == (limits.low, limits.high)
    assert frame["rank"][:2].isna().all()
    assert frame["pgd_20_acc"][:2].isna().all()
    assert_frame_equal(frame[2:].reset_index(drop=True), board)
