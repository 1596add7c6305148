"""What the searches of a model run on: which form of the network, and how many inputs at a time.

Nothing here can change a verdict: every candidate is judged in float32 by the original model.
What can change is how fast candidates are found, and which. So the choice follows fixed rules as
far as they go: a precision that was asked for has one form, and ``auto`` takes the folded network
in float32 unless the search is long. Only then are forms in lower precision timed beside it, and
the choice says with which result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from robench import seeding
from robench.acceleration.search_models import (
    LOWER,
    SearchModel,
    SearchModels,
    Variant,
    build_variant,
    exact_variant,
    is_small_cpu,
)
from robench.acceleration.timing import best_batch, fitting_batch, rates, threads_of
from robench.attacks.losses import LOSSES, Loss, margin
from robench.devices import synchronise
from robench.errors import UsageError
from robench.geometry import project, random_point, steepest
from robench.models.wrapper import RobenchModel
from robench.threat_models import ThreatModel

_FEW = 2_000
"""Passes that are to be expected, below which the model is run as it is"""
_LONG = 3.0
"""Expected seconds of search below which nothing is timed, and no worker is started"""
_PRICE = 1.3
"""How many times faster a form must be that has to be searched again near the boundary; far
enough from 1 that noise in the times seldom decides"""
_LARGEST_DISAGREEMENT = 0.05
"""Largest allowed error of a margin, as a share of the median margin"""
_ROUNDING = 1e-3
"""The same, for what may stand for the original near the boundary"""
_LEAST_ALIKE = 0.9
"""Mean cosine of the angle between the gradients of a form and the original's, at least"""
_PILOT = 16
"""Inputs that tell whether a model falls at once, or has the same gradients in another form"""
_HARDLY_ANY = 1
"""So many of them may be left standing"""
_CHECKED_PIXELS = 2**16
"""Values of all the inputs that agreement is checked on; on large images even a check has its price"""
_LEAST_CHECKED = 16


@dataclass(frozen=True)
class SearchChoice:
    """What searches run on."""

    models: SearchModels
    batch_size: int
    """Inputs of all workers together"""
    seconds: float
    """How long the search is expected to take"""
    reason: str
    """Why these models, for the record: runs that differ in them can be told apart"""

    @property
    def is_short(self) -> bool:
        """Whether it is over before measurements, or other processes, would pay."""
        return self.seconds < _LONG


def choose_search_model(
    model: RobenchModel,
    inputs: Tensor,
    labels: Tensor,
    *,
    precision: str,
    threat_model: ThreatModel,
    batch_size: int | None = None,
    workers: int = 1,
    alone: bool = True,
    planned_passes: float,
) -> SearchChoice:
    """Choose what searches run on, and how many inputs at a time.

    Args:
        model: the original, on its device.
        inputs: (N, C, H, W), a sample of the data, on the device.
        labels: int64 (N,).
        precision: one of :data:`robench.request.PRECISIONS`: ``auto``; ``fp32`` for the original
            as it is; or another, to have it whatever is faster.
        threat_model: the ball in which agreement is checked.
        batch_size: the user's; None: what fits into memory and pays, by measurement.
        workers: searches that are to share the batch, unless the whole is short.
        alone: no other thread makes passes meanwhile; TF32 is a setting of the whole process.
        planned_passes: how many gradients are to come, if every sample survives.

    Raises:
        UsageError: the precision that was asked for does not agree with the original.
    """
    if precision == "tf32" and not alone:
        raise UsageError(
            "tf32 is a setting of the whole process, which searches on several devices share",
            hint="Use --precision auto, bf16, fp16 or fp32, or one device",
        )
    plain = SearchModel(model)
    passes, rate = planned_passes, float("inf")
    if passes >= _FEW:
        try:
            alive, rate = _look_ahead(plain, inputs, labels, threat_model)
        except Exception:  # A model may refuse gradients: the searches meet it, sample by sample.
            size = batch_size or _PILOT
            return SearchChoice(SearchModels.all_on(plain), size, 0.0, "its gradients raise")
        passes *= alive
    seconds = passes / rate
    size = batch_size or fitting_batch(model, inputs)
    share = max(1, size // workers)
    models, reason = SearchModels.all_on(plain), "asked for"
    with threads_of(workers):
        if precision == "auto" and passes < _FEW:
            reason = f"fewer than {_FEW} passes are to be expected"
        elif precision != "fp32":
            check = _Check.of(plain, inputs, labels, threat_model)
            exact = check.agreeing(model, exact_variant(inputs.device), _ROUNDING) or plain
            if precision == "auto":
                lower = [n for n in _worth_trying(inputs.device) if alone or n != "tf32"]
                models, reason = _fastest(model, exact, lower, check, share, seconds, rate)
            else:
                form = check.agreeing(model, LOWER[precision], _LARGEST_DISAGREEMENT)
                if form is None:
                    raise UsageError(
                        f"in {precision} the logits or their gradients do not agree with the original "
                        "model's",
                        where=model.summary.id,
                        hint="Use --precision auto or fp32",
                    )
                models = SearchModels(form, form, form, exact)
        if batch_size is None and seconds >= _LONG:
            share = best_batch(
                models.search, model, inputs, labels, start=share, workers=workers, rate=rate
            )
            size = share * workers
    return SearchChoice(models, size, seconds, reason)


def _look_ahead(
    plain: SearchModel, inputs: Tensor, labels: Tensor, threat_model: ThreatModel
) -> tuple[float, float]:
    """The share of a few inputs that survives three steps, and how many gradients a second.

    Where hardly any sample does, further steps are sure to bring it down as well: a share of 0.
    """
    clean, classes = inputs[:_PILOT], labels[:_PILOT]
    loss = Loss(LOSSES["ce"], classes, classes)
    points, rate = clean, 1e-9
    for _ in range(3):
        started = time.perf_counter()
        slope = plain.gradient(points, loss).gradient
        synchronise()
        rate = max(rate, len(clean) / (time.perf_counter() - started))
        ahead = points + threat_model.radius * steepest(slope, threat_model.norm)
        points = project(ahead, clean, threat_model.norm, threat_model.radius)
    alive = int((margin(plain.logits(points), classes) > 0).sum())
    return (alive / len(clean) if alive > _HARDLY_ANY else 0.0), rate


def _worth_trying(device: torch.device) -> tuple[str, ...]:
    """Precisions that may be faster than float32 on a device."""
    if device.type == "cpu":
        return () if is_small_cpu(device) else ("bf16",)
    return {"cuda": ("tf32", "bf16", "fp16"), "mps": ("fp16",)}.get(device.type, ())


@dataclass(frozen=True)
class _Check:
    """What a form has to agree with: what the original says at random points of the ball.

    A form may have the original's outputs and other gradients: a trace goes through functions whose
    backward pass is the network's own, and takes the derivative of what they do.
    """

    points: Tensor
    labels: Tensor
    expected: Tensor
    """(N,) margins of the original model"""
    plain: SearchModel
    """The original"""

    @classmethod
    def of(
        cls, plain: SearchModel, inputs: Tensor, labels: Tensor, threat_model: ThreatModel
    ) -> _Check:
        count = max(_LEAST_CHECKED, _CHECKED_PIXELS // inputs[:1].numel())
        inputs, labels = inputs[:count], labels[:count]
        keys = seeding.sample_keys(0, [str(i) for i in range(len(inputs))]).to(inputs.device)
        points = random_point(inputs, threat_model.norm, threat_model.radius, keys)
        return cls(points, labels, margin(plain.logits(points), labels), plain)

    def agreeing(self, model: RobenchModel, variant: Variant, limit: float) -> SearchModel | None:
        """The model in another form, if its margins agree up to ``limit`` × the median margin, and its
        gradients point where the original's do.

        Its tolerance is twice the largest error seen.
        """
        form = build_variant(model, variant)
        if form is None:
            return None
        try:
            found = form.logits(self.points)
            alike = float(_cosines(self._slope_of(form), self._slope).mean()) >= _LEAST_ALIKE
        except Exception:
            # An operation that does not exist in this precision, or a network that looks into
            # layers that were replaced: whatever it is, the form is not one to use.
            return None
        error = float((margin(found, self.labels) - self.expected).abs().max())
        form.tolerance = 2 * error
        agrees = error <= limit * float(self.expected.abs().median())
        if agrees and alike:
            return form
        # What cannot be traced rightly takes the rest of the form.
        unfolded = replace(variant, folded=False)
        return self.agreeing(model, unfolded, limit) if variant.folded else None

    @cached_property
    def _slope(self) -> Tensor:
        """The original's."""
        return self._slope_of(self.plain)

    def _slope_of(self, model: SearchModel) -> Tensor:
        """(M, C, H, W), gradients of the margin at the first points."""
        points, labels = self.points[:_PILOT], self.labels[:_PILOT]
        return model.gradient(points, Loss(LOSSES["margin"], labels, labels)).gradient


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Of the angles between gradients (M, …), (M,); 1 where both are zero, 0 where one is or is not
    finite."""
    one, other = (gradient.flatten(1).double() for gradient in (one, other))
    cosines = nn.functional.cosine_similarity(one, other, eps=1e-300).nan_to_num(0.0)
    return torch.where((one == 0).all(dim=1) & (other == 0).all(dim=1), 1.0, cosines)


def _fastest(
    model: RobenchModel,
    exact: SearchModel,
    precisions: Sequence[str],
    check: _Check,
    batch_size: int,
    seconds: float,
    rate: float,
) -> tuple[SearchModels, str]:
    """The fastest form for gradients and the fastest for forward passes, and why.

    Attacks along the boundary stay in float32: in lower precision they break other samples
    (benchmarks/results/low_precision.md).
    """
    if seconds < _LONG:
        return SearchModels.all_on(exact), f"not timed, as the search takes less than {_LONG:g} s"
    tried = [check.agreeing(model, LOWER[name], _LARGEST_DISAGREEMENT) for name in precisions]
    lower = [form for form in tried if form is not None]
    if not lower:
        return SearchModels.all_on(exact), "no lower precision is of use here"
    forms = [exact, *lower]
    # A slow network is timed on few inputs.
    count = min(batch_size, max(_PILOT, int(rate / 2)))
    gradients, forwards = (
        rates(forms, kind, check.points, check.labels, count) for kind in ("gradient", "logits")
    )
    timed = "; ".join(
        f"{form.description}: {gradient:.0f} gradients, {forward:.0f} forward passes"
        for form, gradient, forward in zip(forms, gradients, forwards, strict=True)
    )
    reason = f"inputs a second in {timed}; lower precision has to be {_PRICE:g} times as fast"
    search, queries = (_paying(forms, seen) for seen in (gradients, forwards))
    return SearchModels(search, queries, exact, exact), reason


def _paying(forms: Sequence[SearchModel], seen: Sequence[float]) -> SearchModel:
    """The fastest, if it is clearly faster than the first, which need not be searched again."""
    best = max(range(len(forms)), key=lambda index: seen[index])
    return forms[best] if seen[best] >= _PRICE * seen[0] else forms[0]
