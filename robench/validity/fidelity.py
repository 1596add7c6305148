"""Gradient fidelity: whether the margin changes in the ball as its gradient says it will.

A mask need not take the gradient away: it is enough that it is that of another function, or is the
slope of a staircase's tread. So the change of the margin that the gradient promises is held against
the one that comes, along the steepest step of the norm and along a random one, at ε, ε/4 and ε/16. A
quantiser agrees in neither; a gate that closes within the ball agrees at ε/16 alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robench.attacks.losses import margin_loss
from robench.doctor.subject import Subject
from robench.records import Diagnosis
from robench.threat_models import ThreatModel
from robench.validity.probing import Probing

STEPS = (1.0, 1 / 4, 1 / 16)
"""Shares of ε."""
_LIMITS = {"steepest": (0.6, 0.2, 0.1), "random": (None, 0.5, 0.2)}
"""The largest median error of a sound model, by direction and step; None: networks bend too much
along a random direction of length ε, where the gradient's own part is small
(``benchmarks/results/diagnoses.md``)."""
_AGREEMENT = 0.9
"""Samples whose margin falls along a quarter of the steepest step, at least."""
_FINEST = 2 / 255
"""Shorter steps are not judged: a network that rounds its inputs to 256 levels is flat there."""
_NOISE = 0.1
"""Nor are those that promise less than ten times what rounding the logits may change."""
_ASKS_FOR = ("bpda", "smoothed", "square-more")
_ASKS_FOR_WITHOUT = ("bpda", "distilled", "transfer", "square-more", "decision")


@dataclass(frozen=True)
class Agreement:
    """How the promised change of the margin compares with the one that came, over the samples.

    Attributes:
        direction: ``steepest`` or ``random``.
        step: share of ε.
        error: median of |promised − seen| / (|promised| + |seen|), in [0, 1].
        agreement: share of samples where both have the same sign.
        explained: median of promised / seen; NaN where nothing changed.
        limit: the largest error of a sound model; None: not judged.
    """

    direction: str
    step: float
    error: float
    agreement: float
    explained: float
    limit: float | None


def agreements(probing: Probing, gradient: Tensor) -> list[Agreement]:
    """For each direction and step, of the gradient (N, C, H, W) of the margin loss."""
    clean = probing.margins(probing.inputs)
    rounding = probing.rounding()
    flat = (gradient == 0).flatten(1).all(dim=1).cpu()
    found = []
    for name, direction in (
        ("steepest", probing.uphill(gradient)),
        ("random", probing.noise(0)),
    ):
        for step, limit in zip(STEPS, _LIMITS[name], strict=True):
            points = probing.moved(direction, step)
            delta = (points - probing.inputs).cpu().double()
            promised = -(gradient.cpu().double() * delta).flatten(1).sum(dim=1)
            seen = probing.margins(points) - clean
            size = promised.abs() + seen.abs()
            # Where neither changes nothing is wrong; where there is no gradient, it says nothing.
            error = ((promised - seen).abs() / size).nan_to_num(nan=0.0)
            error[flat] = 1.0
            change = torch.maximum(promised.abs(), seen.abs())
            lost = bool((rounding > _NOISE * change)[~flat].double().mean() > 0.5)
            short = step < 1 and step * probing.pixel_step < _FINEST
            found.append(
                Agreement(
                    direction=name,
                    step=step,
                    error=float(error.median()),
                    agreement=float((promised * seen > 0).double().mean()),
                    explained=float((promised / seen).nanmedian()),
                    limit=None if short or lost else limit,
                )
            )
    return found


def fidelity(subject: Subject, threat_model: ThreatModel, seed: int) -> Diagnosis:
    """Gradient fidelity, on correctly classified samples."""
    probing = Probing(subject, threat_model, seed)
    gradient = probing.gradient(margin_loss)
    if gradient is None:
        probing.margins(subject.inputs)  # a model that fails without gradients too is no mask
        return Diagnosis(
            test="fidelity",
            outcome="masked",
            evidence="there is no gradient to follow: autograd finds none, or none that is finite",
            asks_for=_ASKS_FOR_WITHOUT,
            severe=True,
        )
    zero = float((gradient == 0).flatten(1).all(dim=1).double().mean())
    found = agreements(probing, gradient)
    judged = [(a.error / a.limit, a.error, a.limit) for a in found if a.limit is not None]
    if not judged:
        return Diagnosis(
            test="fidelity",
            outcome="undefined",
            evidence="the logits are too coarse, or the ball is too small, to compare changes of "
            "the margin with its gradient",
        )
    excess, value, threshold = max(judged)
    falling = found[1].agreement
    masked = excess > 1
    if not masked and found[1].limit is not None and falling < _AGREEMENT:
        masked, value, threshold = True, falling, _AGREEMENT
    share = found[0].explained
    told = [*_told(found), f"a quarter of the steepest step lowers the margin of {falling:.0%}"]
    told += (
        [f"at ε the gradient promises {share:.2f} of the change"] if math.isfinite(share) else []
    )
    told += [f"it is zero everywhere for {zero:.0%} of the samples"] if zero else []
    asks_for = _ASKS_FOR_WITHOUT if zero > 0.5 else _ASKS_FOR
    return Diagnosis(
        test="fidelity",
        outcome="masked" if masked else "sound",
        evidence="; ".join(told),
        value=value,
        threshold=threshold,
        asks_for=asks_for if masked else (),
        severe=masked and zero > 0.5,
    )


def _told(found: list[Agreement]) -> Iterator[str]:
    names = {"steepest": "the margin's change is not its gradient's by", "random": "at random by"}
    for name, words in names.items():
        errors = [f"{a.error:.2f}" for a in found if a.direction == name]
        yield f"{words} {', '.join(errors)} of both at ε, ε/4, ε/16"
