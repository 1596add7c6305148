"""How the search runs its passes: precision, layout and folding, chosen by a short measurement.

Nothing here can change a verdict: every candidate is judged in float32 by the original model.
What can change is how fast candidates are found. On the actual model and device each variant is
built, its logits are compared with the original's, and its passes are timed; the fastest forward
and the fastest forward-and-backward that agree are taken, which need not be the same. Where the
search is expected to be long, compiled forms of both are tried as well. The time that all this
takes is kept small against the time that the search is expected to take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from robench import seeding
from robench.attacks.base import Gradient
from robench.attacks.losses import LOSSES, Loss, margin
from robench.errors import UsageError
from robench.evaluation.batch_size import BATCHES, fitting_batch
from robench.evaluation.compiled import Check, Kind, compiling_pays, try_compiled
from robench.evaluation.forks import threads_of
from robench.evaluation.passes import SearchModel, is_out_of_memory
from robench.evaluation.search_models import EagerModel
from robench.evaluation.timing import synchronise, tiled
from robench.evaluation.variants import VARIANTS, build_variant
from robench.geometry import project, random_point, steepest
from robench.models.wrapper import RobenchModel
from robench.registry import unknown_name
from robench.threat_models import ThreatModel

__all__ = ["PRECISIONS", "SearchChoice", "choose_search_model"]

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")

_WORTH_REARRANGING = 0.2
"""Expected seconds of search below which the model is run as it is"""
_WORTH_MEASURING = 3.0
"""Expected seconds of search below which variants are not timed, and no worker is started"""
_FEW = 2_000
"""Planned passes below which not even their time is worth a look"""
_MAX_DISAGREEMENT = 0.05
"""Largest allowed error of a margin, as a share of the median margin"""
_ROUNDING = 1e-3
"""The same, for what may stand for the original near the boundary"""
_TIMING_SECONDS = 0.015
_TURNS = 2
_STILL_IN = 0.9
"""Share of the best rate so far below which a variant gets no second turn"""
_PRICE_OF_INEXACT = 1.3
"""How many times faster a variant must be that has to be searched again near the boundary; far
enough from 1 that noise in the times does not decide on the numbers"""
_LONG_CALL = 0.12
"""Seconds of one call above which a larger batch has nothing left to gain"""
_AS_FAST = 0.9
"""Share of the best rate that a larger batch must reach: it saves bookkeeping, and times vary"""
_PILOT = 32
"""Inputs that tell whether a model falls at once"""
_HARDLY_ANY = 1 / 16
"""Share of them that further steps are sure to bring down as well"""

_AUTO = {
    "cpu": ("fp32 rearranged", "bf16"),
    "cuda": ("fp32 rearranged", "tf32", "bf16", "fp16"),
    "mps": ("fp32 rearranged", "fp16"),
}


@dataclass(frozen=True)
class SearchChoice:
    """What searches run on."""

    search: SearchModel
    """The fastest that agrees"""
    exact: SearchModel
    """The fastest that differs from the original by float32 rounding only"""
    batch_size: int
    seconds: float
    """How long the search is expected to take"""

    @property
    def is_short(self) -> bool:
        """Whether it is over before measurements, or other processes, would pay."""
        return self.seconds < _WORTH_MEASURING


class MixedModel:
    """Forward passes through one variant, gradients through another."""

    def __init__(self, forward: SearchModel, backward: SearchModel) -> None:
        self.forward = forward
        self.backward = backward
        self.tolerance = max(forward.tolerance, backward.tolerance)
        self.description = forward.description
        if backward.description != forward.description:
            self.description += f" forward, {backward.description} backward"

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        return self.forward.logits(points)

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """One forward and one backward pass."""
        return self.backward.gradient(points, loss)

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the gradients of each."""
        return self.backward.jacobian(points)


_Pair = tuple[SearchModel, SearchModel]
"""For forward passes, and for gradients"""


def _joined(forward: SearchModel, backward: SearchModel) -> SearchModel:
    return forward if forward is backward else MixedModel(forward, backward)


def choose_search_model(
    model: RobenchModel,
    inputs: Tensor,
    labels: Tensor,
    *,
    precision: str,
    threat_model: ThreatModel,
    batch_size: int | None = None,
    workers: int = 1,
    planned_passes: float,
) -> SearchChoice:
    """Choose what searches run on, and how many inputs at a time.

    Args:
        model: the original, on its device.
        inputs: (N, C, H, W), a sample of the data, on the device.
        labels: int64 (N,).
        precision: ``auto``; ``fp32`` for the original as it is; or another of :data:`PRECISIONS`
            to have it whatever is faster.
        threat_model: the ball in which agreement is checked.
        batch_size: the user's; None: what fits into memory, by measurement.
        workers: searches that are to share the batch, unless the whole is short.
        planned_passes: how many gradients are to come; few do not pay for a measurement.

    Raises:
        UnknownNameError: no such precision.
        UsageError: the precision that was asked for does not agree with the original.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, list(PRECISIONS))
    plain = EagerModel(model)
    default = batch_size or fitting_batch(model, inputs)
    if precision in ("auto", "fp32") and planned_passes < _FEW:
        return SearchChoice(plain, plain, default, seconds=0.0)
    rate, surviving = _pilot(plain, inputs, labels, threat_model)
    seconds = planned_passes / rate
    if seconds > _WORTH_MEASURING:
        # Nothing is gained on models that fall at once, whatever the budget.
        seconds *= surviving
    if precision == "fp32":
        return SearchChoice(plain, plain, default, seconds)
    if precision == "auto" and seconds < _WORTH_REARRANGING:
        return SearchChoice(plain, plain, default, seconds)
    # On a large network even a check has its price.
    checked = max(16, min(len(inputs), int(rate / 4)))
    trial = _Trial(model, plain, inputs[:checked], labels[:checked], threat_model)
    if precision == "auto" and seconds < _WORTH_MEASURING:
        return SearchChoice(trial.exact_guess, trial.exact_guess, default, seconds)
    if precision == "auto":
        kinds = _AUTO.get(inputs.device.type, ("fp32 rearranged",))[1:]
        candidates = [*trial.exact_forms, *(c for kind in kinds for c in trial.agreeing(kind))]
    else:
        candidates = trial.agreeing(precision)
    if not candidates:
        raise UsageError(
            f"in {precision} the logits do not agree with the original model's",
            where=model.summary.id,
            hint="Use --precision auto or fp32",
        )
    share = max(1, default // workers)
    with threads_of(workers):
        fastest = exact = trial.fastest(candidates, share)
        if not all(form in trial.exact_forms for form in fastest):
            # All were timed already, unless a precision was asked for.
            known = trial.exact_forms if precision == "auto" else [trial.exact_guess]
            exact = trial.fastest(known, share)
        if batch_size is None:
            share = trial.best_batch(fastest[1], share, workers)
            default = share * workers
        search = trial.compiled(*fastest, share, planned_passes * surviving)
    joined = _joined(*search)
    return SearchChoice(joined, joined if search == exact else _joined(*exact), default, seconds)


class _Trial:
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
        self.plain = plain
        self.labels = labels
        # Where agreement is checked: clean inputs moved to random points of the ball.
        keys = seeding.sample_keys(0, [str(i) for i in range(len(inputs))]).to(inputs.device)
        self.points = random_point(inputs, threat_model.norm, threat_model.radius, keys)
        self.expected = margin(plain.logits(self.points), labels)
        self.rates: dict[tuple[str, str], float] = {}
        self.exact_forms = [plain, *self.agreeing("fp32 rearranged", _ROUNDING)]
        """Those that differ from the original by rounding only"""
        self.exact_guess = self.exact_forms[:2][-1]
        """Which of them is taken untimed: folded, if it can be"""

    def agreeing(self, kind: str, limit: float = _MAX_DISAGREEMENT) -> list[EagerModel]:
        """The variants of one kind whose margins agree up to ``limit`` × the median margin."""
        built = (build_variant(self.model, variant) for variant in VARIANTS[kind])
        return [c for c in built if c is not None and self._agrees(c, limit)]

    def _agrees(self, candidate: EagerModel, limit: float) -> bool:
        """Sets the candidate's tolerance to twice the largest error seen."""
        try:
            error = (margin(candidate.logits(self.points), self.labels) - self.expected).abs().max()
            loss = Loss(LOSSES["ce"], self.labels, self.labels)
            finite = bool(candidate.gradient(self.points, loss).gradient.isfinite().all())
        except Exception:
            # An operation that does not exist in this precision, or a network that looks into
            # layers that were replaced: whatever it is, the variant is not one to use.
            return False
        candidate.tolerance = 2 * float(error)
        return finite and float(error) <= limit * float(self.expected.abs().median())

    def fastest(
        self, candidates: Sequence[EagerModel], batch_size: int
    ) -> tuple[EagerModel, EagerModel]:
        """The fastest forward and the fastest gradient."""
        if len(candidates) == 1:
            return candidates[0], candidates[0]
        batch = self._timed(batch_size)
        kinds: tuple[Kind, ...] = ("logits", "gradient")
        # In turns: whatever else the machine does for a moment must not hit one of them alone.
        fresh = [c for c in candidates if (c.description, "gradient") not in self.rates]
        for turn in range(_TURNS):
            for kind in kinds:
                best = max((self.rates.get((c.description, kind), 0.0) for c in fresh), default=0.0)
                for candidate in fresh:
                    if turn == 0 or self.rates[candidate.description, kind] >= _STILL_IN * best:
                        self._time(candidate, kind, batch, again=turn > 0)
        forward = max(candidates, key=lambda c: self._worth(c, "logits"))
        backward = max(candidates, key=lambda c: self._worth(c, "gradient"))
        return forward, backward

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
        return min(batch_size, len(self.points)) if slow else batch_size

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

    def compiled(
        self, forward: EagerModel, backward: EagerModel, batch_size: int, passes: float
    ) -> _Pair:
        """Compiled forms of what was chosen, where so many passes are worth a compilation."""
        limit = _MAX_DISAGREEMENT * float(self.expected.abs().median())
        check = Check(self.points, self.labels, self.expected, limit)
        measured = self._timed(batch_size)

        def better(form: EagerModel, kind: Kind) -> SearchModel:
            rate = self._rate(form, kind, measured)
            if rate and compiling_pays(
                form.module,
                kind,
                self.points.device,
                passes=passes,
                rate=rate,
                batch_size=batch_size,
            ):
                return try_compiled(form, kind, batch_size, check)
            return form

        return better(forward, "logits"), better(backward, "gradient")

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


def _pilot(
    plain: EagerModel, inputs: Tensor, labels: Tensor, threat_model: ThreatModel
) -> tuple[float, float]:
    """A first guess from a few inputs: gradients a second, and the share that survives three.

    The share is 0 where hardly any is left.
    """
    clean, classes = inputs[:_PILOT], labels[:_PILOT]
    loss = Loss(LOSSES["ce"], classes, classes)
    points, rate = clean, 1.0
    for _ in range(3):
        started = time.perf_counter()
        slope = plain.gradient(points, loss).gradient
        synchronise()
        seconds = time.perf_counter() - started
        rate = max(rate, len(clean) / seconds)
        if seconds > _LONG_CALL and len(clean) == _PILOT:
            half = _PILOT // 2
            clean, classes, points, slope = (t[:half] for t in (clean, classes, points, slope))
            loss = Loss(LOSSES["ce"], classes, classes)
        ahead = points + threat_model.radius * steepest(slope, threat_model.norm)
        points = project(ahead, clean, threat_model.norm, threat_model.radius)
    share = float((margin(plain.logits(points), classes) > 0).double().mean())
    return rate, share if share > _HARDLY_ANY else 0.0


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
