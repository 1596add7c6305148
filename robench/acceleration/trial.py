"""Forms of one model, checked against it and timed beside each other on its device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from robench import seeding
from robench.acceleration.batch_size import BATCHES, fitting_batch
from robench.acceleration.quantised import QuantisedModel, build_quantised
from robench.acceleration.search_models import EagerModel, SearchModel
from robench.acceleration.timing import tiled
from robench.acceleration.variants import VARIANTS, Variant, build_variant
from robench.attacks.losses import LOSSES, Loss, margin
from robench.devices import is_out_of_memory, synchronise
from robench.geometry import random_point
from robench.models.wrapper import RobenchModel
from robench.threat_models import ThreatModel

__all__ = ["Forms", "Trial"]

Forms = tuple[EagerModel, EagerModel]
"""For forward passes, and for gradients"""
Kind = Literal["logits", "gradient"]

_KINDS: tuple[Kind, Kind] = ("logits", "gradient")
_MAX_DISAGREEMENT = 0.05
"""Largest allowed error of a margin, as a share of the median margin"""
_ROUNDING = 1e-3
"""The same, for what may stand for the original near the boundary"""
_TIMING_SECONDS = 0.015
_TIMED_OF_SLOW = 16
"""Inputs of a timed call where a network is so slow that it is checked on few"""
_PIECES = (16, 64)
"""Inputs of a pass that may suit a processor's cache better than all of a batch at once"""
_TURNS = 2
_STILL_IN = 0.9
"""Share of the best rate so far below which a variant gets no second turn"""
_PRICE_OF_INEXACT = 1.3
"""How many times faster a variant must be that has to be searched again near the boundary; far
enough from 1 that noise in the times does not decide on the numbers"""
_GAIN_OF_BYTES = 1.5
"""How many times faster than the fastest of all others the 8-bit form must be. Some survivors are
searched again from start to end, and on small networks the gain is near the bound for other low
precision, where noise in the times would decide on the numbers"""
_LONG_CALL = 0.12
"""Seconds of one call above which a larger batch has nothing left to gain"""
_AS_FAST = 0.9
"""Share of the best rate that a larger batch must reach: it saves bookkeeping, and times vary"""


class Trial:
    """Variants of one model, checked and timed on the same inputs."""

    def __init__(
        self,
        model: RobenchModel,
        plain: EagerModel,
        inputs: Tensor,
        labels: Tensor,
        threat_model: ThreatModel,
    ) -> None:
        self.model = model
        self.labels = labels
        # Where agreement is checked: clean inputs moved to random points of the ball.
        keys = seeding.sample_keys(0, [str(i) for i in range(len(inputs))]).to(inputs.device)
        self.points = random_point(inputs, threat_model.norm, threat_model.radius, keys)
        self.expected = margin(plain.logits(self.points), labels)
        self.rates: dict[tuple[str, str], float] = {}
        rearranged = self.agreeing("fp32 rearranged", _ROUNDING)
        folded = [form for form in rearranged if form.description == Variant(folded=True).name]
        self.exact_guess = [plain, *folded][-1]
        """What is taken untimed: folded, if it can be"""
        # A network with its BatchNorm does the same, and BatchNorm as well.
        self.exact_forms = rearranged if folded else [plain, *rearranged]
        """Those that differ from the original by rounding only"""

    def agreeing(self, kind: str, limit: float = _MAX_DISAGREEMENT) -> list[EagerModel]:
        """The variants of one kind whose margins agree up to ``limit`` × the median margin."""
        built = (build_variant(self.model, variant) for variant in VARIANTS[kind])
        return [c for c in built if c is not None and self._agrees(c, limit)]

    def quantised(self) -> QuantisedModel | None:
        """The 8-bit form, if there is one and it agrees; it has no gradients."""
        form = build_quantised(self.model, self.points[::2])
        agrees = form is not None and self._agrees(form, _MAX_DISAGREEMENT, gradients=False)
        return form if agrees else None

    def _agrees(self, candidate: EagerModel, limit: float, gradients: bool = True) -> bool:
        """Sets the candidate's tolerance to twice the largest error seen."""
        try:
            error = (margin(candidate.logits(self.points), self.labels) - self.expected).abs().max()
            loss = Loss(LOSSES["ce"], self.labels, self.labels)
            finite = not gradients or bool(
                candidate.gradient(self.points, loss).gradient.isfinite().all()
            )
        except Exception:
            # An operation that does not exist in this precision, or a network that looks into
            # layers that were replaced: whatever it is, the variant is not one to use.
            return False
        candidate.tolerance = 2 * float(error)
        return finite and float(error) <= limit * float(self.expected.abs().median())

    def fastest(self, candidates: Sequence[EagerModel], batch_size: int) -> Forms:
        """The fastest forward and the fastest gradient."""
        if len(candidates) == 1:
            return candidates[0], candidates[0]
        batch = self._timed(batch_size)
        # In turns: whatever else the machine does for a moment must not hit one of them alone.
        fresh = [c for c in candidates if (c.description, "gradient") not in self.rates]
        for turn in range(_TURNS):
            for kind in _KINDS:
                best = max((self.rates.get((c.description, kind), 0.0) for c in fresh), default=0.0)
                for candidate in fresh:
                    if turn == 0 or self.rates[candidate.description, kind] >= _STILL_IN * best:
                        self._time(candidate, kind, batch, again=turn > 0)
        forward = max(candidates, key=lambda c: self._worth(c, "logits"))
        backward = max(candidates, key=lambda c: self._worth(c, "gradient"))
        return forward, backward

    def fastest_even(
        self, candidates: Sequence[EagerModel], fastest: Forms, batch_size: int
    ) -> Forms:
        """The fastest forward and gradient of one precision, where as many of both are needed."""
        if fastest[0].precision == fastest[1].precision:
            return fastest
        groups: dict[str, list[EagerModel]] = {}
        for candidate in candidates:
            groups.setdefault(candidate.precision, []).append(candidate)
        pairs = [self.fastest(group, batch_size) for group in groups.values()]

        def cost(pair: Forms) -> float:
            return sum(1 / self._worth(f, k) for f, k in zip(pair, _KINDS, strict=True))

        return min(pairs, key=cost)

    def for_queries(self, fastest: EagerModel, batch_size: int) -> EagerModel:
        """The 8-bit form where it agrees and is clearly faster than the fastest of the others.

        It is given inputs in pieces of the size that is best for the processor's cache.
        """
        form = self.quantised()
        if form is None:
            return fastest
        sizes = [*(size for size in _PIECES if size < batch_size), batch_size]
        rates = {size: self._measured(form, "logits", size)[0] for size in sizes}
        form.piece = max(sizes, key=lambda size: rates[size])
        others = self._rate(fastest, "logits", self._timed(batch_size))
        return form if rates[form.piece] >= _GAIN_OF_BYTES * others else fastest

    def _worth(self, candidate: EagerModel, kind: Kind) -> float:
        """Inputs a second, less for what does not stand for the original near the boundary."""
        rate = self.rates[candidate.description, kind]
        return rate if candidate in self.exact_forms else rate / _PRICE_OF_INEXACT

    def _time(self, candidate: EagerModel, kind: Kind, batch_size: int, again: bool) -> None:
        key = candidate.description, kind
        if again and batch_size > _LONG_CALL * self.rates[key]:
            return  # a long call has seen enough of the machine
        rate = self._measured(candidate, kind, batch_size)[0]
        self.rates[key] = max(rate, self.rates.get(key, 0.0))

    def _timed(self, batch_size: int) -> int:
        """How many inputs a measurement takes: only slow networks are checked on few points."""
        slow = len(self.points) < min(batch_size, 64)
        return min(batch_size, len(self.points), _TIMED_OF_SLOW) if slow else batch_size

    def _rate(self, candidate: EagerModel, kind: Kind, batch_size: int) -> float:
        if (candidate.description, kind) not in self.rates:
            self._time(candidate, kind, batch_size, again=False)
        return self.rates[candidate.description, kind]

    def best_batch(self, model: EagerModel, batch_size: int, workers: int) -> int:
        """Larger batches, for each worker, while they pay and fit.

        What surrounds a pass costs the same for any size.
        """
        if batch_size > _LONG_CALL * self._rate(model, "gradient", self._timed(batch_size)):
            return batch_size
        best, seconds = self._measured(model, "gradient", batch_size)
        for larger in BATCHES.get(self.points.device.type, ()):
            if larger <= batch_size or seconds > _LONG_CALL:
                continue
            together = larger * workers
            if together > fitting_batch(self.model, self.points, at_most=together):
                break
            rate, seconds = self._measured(model, "gradient", larger)
            if rate < _AS_FAST * best:
                break
            best, batch_size = max(rate, best), larger
        return batch_size

    def _measured(self, model: SearchModel, what: str, batch_size: int) -> tuple[float, float]:
        """Inputs a second and seconds a call; rate 0 where it does not fit into memory."""
        points, labels = tiled(self.points, batch_size), tiled(self.labels, batch_size)
        loss = Loss(LOSSES["ce"], labels, labels)
        call: Callable[[], object] = (
            (lambda: model.logits(points))
            if what == "logits"
            else (lambda: model.gradient(points, loss))
        )
        try:
            seconds = _seconds_a_call(call)
        except RuntimeError as error:
            if is_out_of_memory(error):
                return 0.0, float("inf")
            raise
        return batch_size / seconds, seconds


def _seconds_a_call(call: Callable[[], object]) -> float:
    call()
    synchronise()
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < _TIMING_SECONDS or not times:
        before = time.perf_counter()
        call()
        synchronise()
        times.append(time.perf_counter() - before)
    return min(times)
