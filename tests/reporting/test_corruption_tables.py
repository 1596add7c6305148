"""What is told of corrupted samples, on records made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from invoke_cli import invoke
from record_factory import make_stored

from robench.records.corruptions import (
    ALEXNET_ERRORS,
    BENCHMARK,
    CORRECT,
    FURTHER,
    SEVERITIES,
    trial_name,
)
from robench.regression_check import Verdict, check
from robench.reporting.compare import compare_models
from robench.reporting.corruptions import corruption_shares, corruption_table
from robench.reporting.leaderboard import build_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.plots.corruptions import corruption_map
from robench.results import RecordFilter, Store

CORRUPTED = RecordFilter(goal="corrupted")


def made(verdicts, *, letters=None, model="toy", names=(*BENCHMARK, *FURTHER), **about):
    """A record of samples that are correct where ``verdicts(name, severity)``, (n,), say so."""
    values = {
        CORRECT + trial_name(name, s): np.asarray(verdicts(name, s), float)
        for name in names
        for s in SEVERITIES
    }
    every = np.stack(list(values.values()))
    if letters is None:
        letters = "".join("S" if right else "B" for right in every.all(axis=0))
    return make_stored(
        letters,
        values=values,
        model=model,
        attack="corruptions",
        kind="corruptions",
        threat="corruptions-generated",
        metrics={},
        **about,
    )


def one(stored):
    (result,) = collect([stored], CORRUPTED)
    return result


def row_of(stored):
    (row,) = corruption_table([one(stored)]).to_dict("records")
    return row


def test_means_are_over_images_of_all_samples():
    # Of four samples one is right up to severity 2, and one, wrong as it is, under fog alone.
    stored = made(lambda name, s: [1, s <= 2, name == "fog", name != "spatter"], letters="SBCB")
    row = row_of(stored)
    fog, others = (100 + 40 + 100 + 100) / 4, (100 + 40 + 0 + 100) / 4
    assert row["fog_acc"] == fog
    assert row["snow_acc"] == others
    assert row["spatter_acc"] == (100 + 40) / 4
    assert row["corruptions_acc"] == pytest.approx((14 * others + fog) / 15, abs=0.01)
    assert row["severity_2_acc"] == pytest.approx((300 + 100 / 15) / 4, abs=0.01)
    assert row["severity_3_acc"] == pytest.approx((200 + 100 / 15) / 4, abs=0.01)
    assert row["robust_acc"] == 25
    assert row["clean_acc"] == 75
    assert "mce" not in row


def test_the_interval_is_over_samples():
    # Each sample is right under everything or nothing: 75 images say no more than one.
    stored = made(lambda name, s: [i % 2 for i in range(40)])
    row = row_of(stored)
    assert row["corruptions_acc"] == 50
    assert row["corruptions_acc_low"] == pytest.approx(35, abs=3)
    assert row["corruptions_acc_high"] == pytest.approx(65, abs=3)


def test_without_a_corruption_of_the_benchmark_there_is_no_mean():
    row = row_of(made(lambda name, s: [1, 1, 0], names=("fog", "snow", "spatter")))
    assert np.isnan(row["corruptions_acc"])
    assert np.isnan(row["severity_1_acc"])
    assert row["fog_acc"] == pytest.approx(66.67)
    assert "frost_acc" not in row


def test_mce_is_relative_to_alexnet_and_on_imagenet_alone():
    def verdicts(name, severity):
        return [1, 0, 0, 1]

    imagenet = made(verdicts, dataset="imagenet", classes=1000)
    wanted = np.mean([50 / error for error in ALEXNET_ERRORS.values()])
    assert row_of(imagenet)["mce"] == pytest.approx(wanted, abs=0.01)
    assert "mce" not in row_of(made(verdicts))


def test_corrupted_results_are_in_no_other_board():
    stored = made(lambda name, s: [1, 0])
    assert collect([stored]) == []
    assert build_leaderboard([stored]).empty
    assert collect([stored], RecordFilter(goal="targeted")) == []


def test_compare_and_gate_are_paired_means():
    better = made(lambda name, s: [1] * 30 + [s < 4] * 20, model="better")
    worse = made(lambda name, s: [1] * 30 + [s < 2] * 20, model="worse")
    first, second = one(worse), one(better)
    table = compare_models(second, [first]).table.set_index("quantity")
    change = table.loc["corruptions_acc"]
    assert (change["baseline"], change["value"]) == pytest.approx((84, 68))
    assert change["difference"] == pytest.approx(-16)
    assert change["low"] < -16 < change["high"] < 0
    assert change["verdict"] == "worse"
    assert table.loc["severity_1_acc", "difference"] == 0
    assert table.loc["fog_acc", "difference"] == pytest.approx(-16)
    answer = check(first, second)
    assert answer.verdict is Verdict.WORSE
    assert {item.quantity for item in answer.criteria} == {"clean_acc", "corruptions_acc"}
    said = {item.quantity: item.verdict for item in check(second, first).criteria}
    assert said["corruptions_acc"] is Verdict.NOT_WORSE


def test_what_the_model_failed_on_is_not_correct():
    stored = made(lambda name, s: [1, 0], letters="SE")
    assert corruption_shares(one(stored), "corruptions")["fog_acc"].tolist() == [100, 0]
    assert "errored:1" in row_of(stored)["validity"]


def test_records_are_listed_with_the_mean_over_corruptions(tmp_path):
    stored, attacked = made(lambda name, s: [1, s < 3]), make_stored("SB", attack="fgsm")
    for item in (stored, attacked):
        Store(tmp_path).write(item.record, item.samples)
    lines = invoke("results", "list", "--results", tmp_path).out.splitlines()
    by_attack = {line.split()[4]: line.split()[-3:] for line in lines[1:]}
    assert by_attack["corruptions"][0::2] == ["–", "70.0"]
    assert by_attack["fgsm"][0::2] == ["50.0", "–"]
    listed = invoke("results", "list", "--results", tmp_path, "--goal", "corrupted", "--json")
    (item,) = listed.json["records"]
    assert (item["robust_acc"], item["corruptions_acc"]) == (None, 70.0)
    assert (
        "right under all  50.00 %"
        in invoke("results", "show", stored.record.key[:8], "--results", tmp_path).out
    )


def test_the_map_shows_every_model():
    results = [one(made(lambda name, s: [1, s < 3], model=m)) for m in ("a", "b")]
    figure = corruption_map(results)
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in shown] == ["a: 70.0", "b: 70.0"]
    np.testing.assert_array_equal(shown[0].images[0].get_array()[0], [100, 100, 50, 50, 50])
    assert corruption_map([]) is None
