"""How the search runs its passes: precision, layout and folding, chosen by a short measurement.

Nothing here can change a verdict: every candidate is judged in float32 by the original model.
What can change is how fast candidates are found. On the actual model and device each variant is
built, its logits are compared with the original's, and its passes are timed; the fastest forward
and the fastest forward-and-backward that agree are taken, which need not be the same. The time
that all this takes is kept small against the time that the search is expected to take.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor

from robench.acceleration.batch_size import fitting_batch
from robench.acceleration.search_models import EagerModel, MixedModel, SearchModel, SearchModels
from robench.acceleration.timing import threads_of
from robench.acceleration.trial import Trial
from robench.attacks.losses import LOSSES, Loss, margin
from robench.devices import synchronise
from robench.errors import UsageError
from robench.geometry import project, steepest
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
_LONG_CALL = 0.12
"""Seconds of one call of the pilot above which half of it must do"""
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

    models: SearchModels
    batch_size: int
    seconds: float
    """How long the search is expected to take"""

    @property
    def is_short(self) -> bool:
        """Whether it is over before measurements, or other processes, would pay."""
        return self.seconds < _WORTH_MEASURING


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
    planned_queries: float = 0.0,
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
        planned_queries: how many of them are forward passes of attacks that ask for logits only.

    Raises:
        UnknownNameError: no such precision.
        UsageError: the precision that was asked for does not agree with the original.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, list(PRECISIONS))
    plain = EagerModel(model)
    default = batch_size or fitting_batch(model, inputs)
    if precision in ("auto", "fp32") and planned_passes < _FEW:
        return SearchChoice(SearchModels.all_on(plain), default, seconds=0.0)
    rate, surviving = _pilot(plain, inputs, labels, threat_model)
    seconds = planned_passes / rate
    if seconds > _WORTH_MEASURING:
        # Nothing is gained on models that fall at once, whatever the budget.
        seconds *= surviving
    if precision == "fp32":
        return SearchChoice(SearchModels.all_on(plain), default, seconds)
    if precision == "auto" and seconds < _WORTH_REARRANGING:
        return SearchChoice(SearchModels.all_on(plain), default, seconds)
    # On a large network even a check has its price.
    checked = max(16, min(len(inputs), int(rate / 4)))
    trial = Trial(model, plain, inputs[:checked], labels[:checked], threat_model)
    if precision == "auto" and seconds < _WORTH_MEASURING:
        return SearchChoice(SearchModels.all_on(trial.exact_guess), default, seconds)
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
        even = trial.fastest_even(candidates, fastest, share)
        if batch_size is None:
            share = trial.best_batch(fastest[1], share, workers)
            default = share * workers
        queries = fastest[0]
        if precision == "auto" and planned_queries * surviving / rate > _WORTH_MEASURING:
            queries = trial.for_queries(fastest[0], share)
    joined = _joined(*fastest)
    exact_model = joined if fastest == exact else _joined(*exact)
    even_model = exact_model if even == exact else _joined(*even)
    models = SearchModels(
        search=joined,
        queries=joined if queries is fastest[0] else queries,
        even=joined if even == fastest else even_model,
        exact=exact_model,
    )
    return SearchChoice(models, default, seconds)


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
