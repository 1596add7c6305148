"""Curves from minimum-norm records made by hand, and what is said of points beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from record_factory import make_stored

from robench.records import JUDGED
from robench.reporting.catalogue import reports
from robench.reporting.curves import (
    MINIMUM_SIZE,
    WORST_CASE,
    RobustCurve,
    curve_of,
    curve_sentences,
    curves_frame,
    curves_of,
)
from robench.reporting.model_results import ModelResult, collect
from robench.results import StoredRecord

NAN = float("nan")


def _run(letters: str, sizes: list[float], **about: Any) -> StoredRecord:
    return make_stored(letters, attack="fmn", values={MINIMUM_SIZE: sizes}, **about)


def _curve(run: StoredRecord, *others: StoredRecord) -> RobustCurve:
    (result,) = collect([run])
    return curve_of(result, "fmn", collect([run, *others]))


def test_a_size_decides_at_every_radius_whatever_the_records_own_is() -> None:
    # Wrong without attack, errored, broken in the ball, outside it, on its border, never.
    curve = _curve(_run("CEBSBS", [NAN, NAN, 0.1, 0.35, 0.2000000003, NAN]))
    assert curve.sizes.tolist() == [0.0, 0.0, 0.1, 0.35, 0.2, np.inf]
    left = {0.0: 4, 0.0999: 4, 0.1: 3, 0.2: 2, 0.34: 2, 0.36: 1, 9.0: 1}
    assert {eps: int(curve.robust(eps).sum()) for eps in left} == left
    assert curve.never_broken == 1
    thresholds, shares = curve.steps
    assert thresholds.tolist() == [0.0, 0.1, 0.2, 0.35]
    assert [round(share.estimate * 6 / 100) for share in shares] == [4, 3, 2, 1]
    assert curve.robust_acc(0.2).estimate == pytest.approx(100 * 2 / 6)


def _hundred(*, broken: int, threat: str, attack: str) -> StoredRecord:
    return make_stored("B" * broken + "S" * (100 - broken), threat=threat, attack=attack)


def test_points_are_of_the_same_model_samples_norm_and_seed() -> None:
    run = _run("B" * 100, [0.01 * k for k in range(1, 101)], threat="Linf-1")
    here = _hundred(broken=20, threat="Linf-0.2", attack="pgd-20")
    others = [
        _hundred(broken=20, threat="L2-0.2", attack="pgd-20"),
        make_stored("B" * 100, threat="Linf-0.2", attack="pgd-20", seed=1),
        make_stored("B" * 100, threat="Linf-0.2", attack="pgd-20", model="another"),
        make_stored("B" * 50, threat="Linf-0.2", attack="pgd-20"),
        _run("B" * 100, [0.01] * 100, threat="Linf-0.3"),
    ]
    curve = _curve(run, here, *others)
    assert [(p.eps, p.source, p.robust_acc.estimate) for p in curve.points] == [
        (0.2, "pgd-20", 80.0),
        (0.2, WORST_CASE, 80.0),
    ]
    assert curve.points[0].difference.estimate == 0
    assert curve_sentences(curve) == [
        "toy: curve and records agree at eps 0.2 within what n = 100 resolves"
    ]


def test_inputs_made_elsewhere_are_no_point() -> None:
    run = _run("SSBB", [0.1, 0.2, 0.3, 0.4], threat="Linf-0.2")
    brought = make_stored("SSBB", attack="judged-file", kind=JUDGED, threat="Linf-0.5")
    assert _curve(run, brought).points == ()


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (23, "agree at eps 0.2"),
        (26, "fmn misses what they find: the curve is too high there"),
        (14, "they miss what fmn finds: those records are too high"),
    ],
)
def test_where_they_disagree_is_said_with_the_direction(broken: int, says: str) -> None:
    """Twenty samples have sizes up to 0.2. McNemar's score on 6 : 0 is 2.4, on 3 : 0 1.7."""
    run = _run("B" * 100, [0.01 * k for k in range(1, 101)], threat="Linf-1")
    curve = _curve(run, _hundred(broken=broken, threat="Linf-0.2", attack="pgd-20"))
    (said,) = curve_sentences(curve)
    assert says in said


def test_a_weak_attack_beside_a_strong_one_is_no_reason_for_doubt() -> None:
    run = _run("B" * 100, [0.01 * k for k in range(1, 101)], threat="Linf-1")
    strong = _hundred(broken=20, threat="Linf-0.2", attack="autoattack")
    weak = _hundred(broken=5, threat="Linf-0.2", attack="fgsm")
    (said,) = curve_sentences(_curve(run, strong, weak))
    assert "agree at eps 0.2" in said


def test_a_curve_alone_says_that_nothing_was_beside_it() -> None:
    first, second = curve_sentences(_curve(_run("BS", [0.1, NAN])))
    assert "no record at a single radius" in first
    assert "on 1 samples at no size" in second


def test_the_table_holds_steps_and_points() -> None:
    run = _run("CBSS", [NAN, 0.1, 0.3, NAN])
    frame = curves_frame([_curve(run, make_stored("CBSS", attack="pgd-20"))])
    assert list(frame.columns) == [
        *("model", "epsilon", "robust_acc", "low", "high", "kind", "source"),
    ]
    assert frame[frame["kind"] == "curve"][["epsilon", "robust_acc", "source"]].values.tolist() == [
        [0.0, 75.0, "fmn"],
        [0.1, 50.0, "fmn"],
        [0.3, 25.0, "fmn"],
    ]
    assert frame["source"].tolist()[3:] == ["pgd-20", WORST_CASE]
    assert (frame["low"] <= frame["robust_acc"]).all()
    assert (frame["robust_acc"] <= frame["high"]).all()


def _group() -> list[ModelResult]:
    return collect([_run("CBSS", [NAN, 0.1, 0.3, NAN]), make_stored("CBSS", attack="pgd-20")])


@pytest.mark.parametrize("attack", ["fmn", None])
def test_a_minimum_norm_record_is_drawn_at_every_radius(attack: str | None) -> None:
    report = reports("figure")["robust_against_eps"]
    figure = report(_group(), attack)
    (axes,) = figure.axes
    line = axes.lines[0]
    assert line.get_drawstyle() == "steps-post"
    assert line.get_ydata().tolist()[:3] == [75.0, 50.0, 25.0]
    hollow, filled = axes.lines[1:]
    assert hollow.get_ydata().tolist() == filled.get_ydata().tolist() == [50.0]
    assert report(_group(), "pgd-20") is None
    assert report(collect([make_stored("CBSS", attack="pgd-20")]), None) is None
    assert len(curves_of(_group())) == 1
