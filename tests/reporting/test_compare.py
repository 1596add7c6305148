from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from record_factory import make_stored

from robench.errors import UnknownNameError, UsageError
from robench.records import MetricSummary
from robench.reporting.compare import compare_models, comparison_csv, comparison_markdown
from robench.reporting.differences import (
    accuracy_difference,
    common_attacks,
    metric_difference,
    worst_class_difference,
)
from robench.reporting.model_results import ModelResult, collect, find_pair
from robench.results import StoredRecord
from robench.statistics import PairedCounts, holm, mcnemar, tango_interval

WEAK = "S" * 10 + "B" * 90
STRONG = "S" * 60 + "B" * 38 + "CC"


def one(letters: str, **kwargs: object) -> ModelResult:
    (result,) = collect([make_stored(letters, **kwargs)])  # type: ignore[arg-type]
    return result


def rows(comparison: object) -> dict[tuple[str, str], dict[str, object]]:
    table = comparison.table  # type: ignore[attr-defined]
    return {(r["model"], r["quantity"]): r for r in table.to_dict("records")}


def test_accuracies_are_compared_pair_by_pair() -> None:
    comparison = compare_models(one(WEAK, model="weak"), [one(STRONG, model="strong")])
    row = rows(comparison)["strong", "robust_acc"]
    counts = PairedCounts(10, 50, 0, 40)
    interval = tango_interval(counts).scaled(100)
    assert (row["baseline"], row["value"], row["difference"]) == pytest.approx((10, 60, 50))
    assert (row["low"], row["high"]) == (interval.low, interval.high)
    assert row["p"] == mcnemar(counts)
    assert (row["only_baseline"], row["only_model"], row["verdict"]) == (0, 50, "better")
    assert comparison.only_baseline["strong"] == []
    assert comparison.only_other["strong"] == [f"toy/{i:05d}" for i in range(10, 60)]
    back = rows(compare_models(one(STRONG, model="strong"), [one(WEAK, model="weak")]))
    assert back["weak", "robust_acc"]["verdict"] == "worse"
    assert back["weak", "clean_acc"]["verdict"] == "not shown"


def test_a_model_equals_itself() -> None:
    values = {"attention_deviation": np.linspace(0, 1, 100)}
    metrics = {"attention_deviation": MetricSummary(mean=0.5)}
    me = one(STRONG, values=values, metrics=metrics)
    comparison = compare_models(me, [me])
    assert len(set(comparison.table["model"])) == 1
    for row in rows(comparison).values():
        assert row["difference"] == 0
        assert row["p_holm"] == 1
        assert row["verdict"] == "not shown"


def test_p_values_are_corrected_over_the_models() -> None:
    others = [one("S" * k + "B" * (100 - k), model=f"m{k}") for k in (12, 20, 22)]
    comparison = compare_models(one(WEAK, model="weak"), others)
    block = comparison.table[comparison.table["quantity"] == "robust_acc"]
    assert list(block["p_holm"]) == holm(list(block["p"]))


def test_metrics_have_a_direction() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.4, 100)

    def model(name: str, shift: float) -> ModelResult:
        values = {
            "attention_deviation": base + shift + rng.normal(0, 0.01, 100),
            "attention_scatter_clean": base + shift + rng.normal(0, 0.01, 100),
            "alignment": np.where(np.arange(100) < 99, np.nan, base),
        }
        return one(WEAK, model=name, values=values, metrics={"x": MetricSummary(mean=0.0)})

    found = rows(compare_models(model("a", 0.0), [model("b", 0.1)]))
    assert found["b", "attention_deviation"]["verdict"] == "worse"
    assert found["b", "attention_deviation"]["difference"] == pytest.approx(0.1, abs=0.01)
    assert found["b", "attention_scatter_clean"]["verdict"] == "differs"
    assert ("b", "alignment") not in found


def test_metrics_use_samples_that_both_have() -> None:
    first = one("SSSS", model="a", values={"attention_shift": [0.1, 0.2, np.nan, 0.4]})
    second = one("SSSS", model="b", values={"attention_shift": [0.2, np.nan, 0.3, 0.3]})
    item = metric_difference("attention_shift", first, second, "pgd-20")
    assert item.n == 2
    assert (item.first, item.second) == pytest.approx((0.25, 0.25))


def test_worst_classes_may_differ() -> None:
    # Labels alternate: the first loses class 1 wholly, the second half of class 0.
    first = one("SB" * 50, model="a")
    second = one("SSBS" * 25, model="b")
    item = worst_class_difference(first, second)
    assert (item.first, item.second, item.interval.estimate) == (0, 50, -50)
    assert item.p_worse == pytest.approx(1 / 2000)
    assert item.interval.high < 0
    same = worst_class_difference(first, first)
    assert (same.p, same.p_worse, same.interval.low, same.interval.high) == (1, 1, 0, 0)


def test_worst_classes_of_a_few_samples_are_no_evidence() -> None:
    """A class of one sample that is lost is the same in every resample, and says next to nothing."""
    first, second = one("BSBSBSBB", model="a"), one("SSSSSSSS", model="b")
    item = worst_class_difference(first, second)
    assert not item.interval.defined
    assert math.isnan(item.p_worse)
    assert worst_class_difference(one("BS" * 5, model="a"), one("S" * 10, model="b")).p_worse < 0.05


def test_loss_follows_the_direction() -> None:
    item = accuracy_difference("x", np.array([True, False]), np.array([True, True]))
    assert item.loss.estimate == 50
    assert (item.loss.low, item.loss.high) == (-item.interval.high, -item.interval.low)


def test_attacks_that_one_lacks_or_that_differ_are_left_out_and_said() -> None:
    base = collect(
        [
            make_stored(STRONG, model="a", attack="fgsm"),
            make_stored(WEAK, model="a", attack="autoattack"),
            make_stored(STRONG, model="a", attack="cw", params={"steps": 5}),
        ]
    )[0]
    other = collect([make_stored(STRONG, model="b", attack=a) for a in ("fgsm", "cw")])[0]
    comparison = compare_models(base, [other])
    assert rows(comparison)["b", "robust_acc"]["baseline"] == 60
    assert any(
        "autoattack is left out: there is no record of it for b" in n for n in comparison.notes
    )
    assert any("cw is left out: its parameters differ" in n for n in comparison.notes)
    assert ("b", "cw_acc") not in rows(comparison)
    with pytest.raises(UsageError, match="no attack in common"):
        common_attacks(base.restricted(["cw"]), other)


def test_other_conditions_are_refused() -> None:
    with pytest.raises(UsageError, match=r"Linf-8/255.*Linf-0\.031"):
        compare_models(one(WEAK, threat="Linf-0.031"), [one(WEAK, threat="Linf-8/255")])
    with pytest.raises(UsageError, match="alone"):
        compare_models(one(WEAK), [])
    with pytest.raises(UsageError, match="was evaluated on"):
        common_attacks(one(WEAK), one(WEAK, seed=1))


def test_outputs_say_the_same() -> None:
    comparison = compare_models(one(WEAK, model="weak"), [one(STRONG, model="strong")])
    text = comparison_markdown(comparison)
    assert "| robust_acc | 10.0 | 60.0 | +50.0 (" in text
    assert "only strong: 50" in text
    assert "n = 100" in text
    parsed = list(csv.DictReader(io.StringIO(comparison_csv(comparison).decode())))
    assert len(parsed) == len(comparison.table)
    robust = next(r for r in parsed if r["quantity"] == "robust_acc")
    assert float(robust["difference"]) == 50
    assert next(r for r in parsed if r["quantity"].startswith("worst"))["only_model"] == ""


def test_same_name_twice_is_told_apart_by_weights() -> None:
    first = make_stored(STRONG)
    renamed = first.record.model.model_copy(
        update={"weights_sha256": "f" * 64, "fingerprint": "e" * 64}
    )
    second = StoredRecord(first.record.model_copy(update={"model": renamed}), first.arrow)
    results = collect([first, second])
    comparison = compare_models(results[0], results[1:])
    assert "@" in comparison.baseline
    with pytest.raises(UsageError, match="several models"):
        find_pair(results, "toy", "toy")
    a, b = find_pair(results, "f" * 10, first.record.model.weights_sha256[:8])
    assert (a.model.weights_sha256, b.model) == ("f" * 64, first.record.model)


def test_finding_a_pair() -> None:
    records = [
        make_stored(STRONG, model="alpha"),
        make_stored(STRONG, model="alpha", threat="Linf-8/255"),
        make_stored(WEAK, model="beta", threat="Linf-8/255"),
        make_stored(WEAK, model="gamma", seed=7),
    ]
    results = collect(records)
    a, b = find_pair(results, "alpha", "digits/Linf-8_255/beta")
    assert a.group == b.group
    assert a.group.written == "Linf-8/255"
    with pytest.raises(UnknownNameError, match="'alpha'"):
        find_pair(results, "alhpa", "beta")
    with pytest.raises(UsageError, match="seed 7"):
        find_pair(results, "beta", "gamma")
    with pytest.raises(UsageError, match="several ways"):
        find_pair(results, "alpha", "alpha")


def test_nothing_defined_is_not_zero() -> None:
    item = metric_difference("attention_shift", one("SB"), one("SB"), "pgd-20")
    assert not item.interval.defined
    assert math.isnan(item.first)
    assert math.isnan(item.p)
