"""Robust accuracy at every ε from one minimum-norm run, beside attacks at single radii.

A minimum-norm attack's record keeps for each sample the size of the smallest perturbation that the
original model was fooled by (``minimum_size``), in the record's ball or out of it. So the share of
samples that are classified correctly and whose size is above ε is robust accuracy under that attack
at ε, for every ε at once; it never rises. Records of attacks at a single radius are points beside
it, and the two agree if the paired difference's 95 % interval (Tango's) holds 0.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robench.formatting import number
from robench.records import Outcome
from robench.reporting.model_results import Bools, ModelResult
from robench.statistics import Interval, PairedCounts, shares_above, tango_interval, wilson

MINIMUM_SIZE = "minimum_size"
"""The column of minimum-norm records"""

WORST_CASE = "worst_case"
"""The source of a point that stands for all attacks at its radius"""


@dataclass(frozen=True)
class RadiusPoint:
    """What attacks at a single radius leave."""

    eps: float
    written: str
    """The radius as people wrote it"""
    source: str
    """The attack, or :data:`WORST_CASE`"""
    robust_acc: Interval
    """In percent"""
    difference: Interval
    """The curve's robust accuracy less this one, in points, paired by sample"""

    @property
    def disagrees(self) -> bool:
        """Whether the difference is more than its interval's width allows for."""
        return not self.difference.low <= 0 <= self.difference.high


@dataclass(frozen=True)
class RobustCurve:
    """A model's robust accuracy under one minimum-norm attack.

    Attributes:
        result: the record, as a result of this attack alone.
        attack: its name.
        sizes: (n,), by sample id: the ε from which on a sample is broken. 0: wrong without an
            attack, or errored; +inf: never fooled.
        points: by radius; at each the single attacks, and last their worst case.
    """

    result: ModelResult
    attack: str
    sizes: npt.NDArray[np.float64]
    points: tuple[RadiusPoint, ...]

    @property
    def model(self) -> str:
        """Its name."""
        return self.result.model.name

    def robust(self, eps: float) -> Bools:
        """Which samples are robust at ``eps``, (n,)."""
        return np.asarray(self.sizes > eps)

    def robust_acc(self, eps: float) -> Interval:
        """In percent, with its 95 % Wilson interval."""
        return wilson(int(self.robust(eps).sum()), len(self.sizes)).scaled(100)

    @functools.cached_property
    def steps(self) -> tuple[npt.NDArray[np.float64], list[Interval]]:
        """Where the curve falls, 0 first, and what it is from there on, in percent."""
        thresholds, shares = shares_above(self.sizes)
        return thresholds, [share.scaled(100) for share in shares]

    @property
    def never_broken(self) -> int:
        """Samples that the attack found no adversarial input for, of any size."""
        return int(np.isinf(self.sizes).sum())


def curve_of(result: ModelResult, attack: str, others: Iterable[ModelResult] = ()) -> RobustCurve:
    """The curve of a minimum-norm attack's record.

    Args:
        result: has the record.
        attack: its name there.
        others: results whose attacks at a single radius become points, where they are of the same
            model, samples, norm and seed. Other minimum-norm records do not, nor inputs that were
            made elsewhere: how far these were searched for is not known.
    """
    about = _about(result)
    alone = RobustCurve(result.restricted([attack]), attack, _sizes(result, attack), ())
    points: list[RadiusPoint] = []
    for other in sorted(others, key=lambda item: item.threat_model.eps):
        names = [
            name
            for name in other.protocol
            if not (is_minimum_norm(other, name) or other.attacks[name].record.attack.is_judged)
        ]
        if _about(other) != about or not names:
            continue
        at_radius = other.restricted(names)
        points += [_point(alone, at_radius, name) for name in names]
        points.append(_point(alone, at_radius, None))
    return RobustCurve(alone.result, attack, alone.sizes, tuple(points))


def is_minimum_norm(result: ModelResult, attack: str) -> bool:
    """Whether the record is a minimum-norm attack's, of all samples."""
    stored = result.attacks[attack]
    return MINIMUM_SIZE in stored.arrow.column_names and not stored.record.attack.stages


def curves_of(results: Sequence[ModelResult]) -> list[RobustCurve]:
    """A curve for each minimum-norm record among results, with the others' attacks as points."""
    return [
        curve_of(result, attack, results)
        for result in results
        for attack in result.attacks
        if is_minimum_norm(result, attack)
    ]


def curves_frame(curves: Iterable[RobustCurve]) -> pd.DataFrame:
    """One row for every ε at which a curve falls, and for every point.

    Columns: ``model``; ``epsilon`` in the norm, [0, 1] pixel units; ``robust_acc``, ``low`` and
    ``high`` in percent, from this ε up to the next of the curve; ``kind``, curve or point;
    ``source``, the attack, or ``worst_case`` of all at that radius.
    """
    rows: list[dict[str, Any]] = []
    for curve in curves:
        thresholds, shares = curve.steps
        found = [("curve", curve.attack, *at) for at in zip(thresholds, shares, strict=True)]
        found += [("point", p.source, p.eps, p.robust_acc) for p in curve.points]
        for kind, source, eps, share in found:
            acc = {"robust_acc": share.estimate, "low": share.low, "high": share.high}
            rows.append(
                {"model": curve.model, "epsilon": float(eps), **acc}
                | {"kind": kind, "source": source}
            )
    columns = ["model", "epsilon", "robust_acc", "low", "high", "kind", "source"]
    return pd.DataFrame(rows, columns=columns)


def curve_sentences(curve: RobustCurve) -> list[str]:
    """In words: where curve and points disagree by more than n resolves, and what is open."""
    said, n = [], len(curve.sizes)
    # A single attack that leaves more than the curve is weak, which is no reason for doubt.
    worst = [point for point in curve.points if point.source == WORST_CASE]
    for point in worst:
        if not point.disagrees:
            continue
        left = number(curve.robust_acc(point.eps).estimate)
        gap = point.difference
        reason = (
            f"{curve.attack} misses what they find: the curve is too high there"
            if gap.low > 0
            else f"they miss what {curve.attack} finds: those records are too high"
        )
        said.append(
            f"{curve.model}: at eps {point.written} the curve says {left} %, the attacks at that radius "
            f"{number(point.robust_acc.estimate)} %; the difference of {number(gap.estimate)} points "
            f"({number(gap.low)} to {number(gap.high)}) is more than n = {n} leaves open; {reason}"
        )
    if not curve.points:
        said.append(f"{curve.model}: no record at a single radius to hold the curve against")
    elif not said:
        radii = ", ".join(point.written for point in worst)
        said.append(
            f"{curve.model}: curve and records agree at eps {radii} within what n = {n} resolves"
        )
    if curve.never_broken:
        said.append(
            f"{curve.model}: {curve.attack} fooled the model on {curve.never_broken} samples at no "
            "size; with no gradient hidden a perturbation of the whole box does"
        )
    return said


def _sizes(result: ModelResult, attack: str) -> npt.NDArray[np.float64]:
    sizes = result.column(attack, MINIMUM_SIZE)
    sizes = np.where(np.isnan(sizes), np.inf, sizes)
    # A find on the ball's border may be larger than its radius by a rounding.
    broken = result.outcome_is(attack, Outcome.BROKEN)
    sizes = np.where(broken, np.minimum(sizes, result.threat_model.radius), sizes)
    lost = ~result.clean_correct | result.outcome_is(attack, Outcome.ERRORED)
    return np.asarray(np.where(lost, 0.0, sizes))


def _point(curve: RobustCurve, result: ModelResult, attack: str | None) -> RadiusPoint:
    robust = result.robust if attack is None else result.outcome_is(attack, Outcome.SURVIVED)
    threat = result.threat_model
    counts = PairedCounts.of(curve.robust(threat.radius), robust)
    return RadiusPoint(
        eps=threat.radius,
        written=threat.written,
        source=attack or WORST_CASE,
        robust_acc=wilson(int(robust.sum()), result.n).scaled(100),
        difference=tango_interval(counts).scaled(100),
    )


def _about(result: ModelResult) -> tuple[Any, ...]:
    group = result.group
    return result.model.fingerprint, group.fingerprint, group.norm, group.seed
