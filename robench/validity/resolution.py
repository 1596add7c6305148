"""Loss resolution: whether the numbers that attacks climb have digits left.

Logits far from zero, saturated, clamped or in half precision change within the ball by less than
they can tell apart, and a softmax that is sure of itself leaves cross-entropy nothing: the model is
no more robust for it. What a loss changes by along the steepest step is counted in units of its own
last place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robench.attacks.losses import cross_entropy, margin, margin_loss
from robench.doctor.subject import Subject
from robench.records import Diagnosis
from robench.threat_models import ThreatModel
from robench.validity.probing import Probing

_UNITS = 64.0
"""A loss changes by so many units in its last place at least, along ε/16; of sound models the
smallest is some 30,000 (``benchmarks/results/diagnoses.md``)."""
_GONE = 1e-30
"""A slope of the cross-entropy below this underflows on its way through a network, in float32."""
_FEW = 0.1
"""Share of the samples that may have lost it."""


def resolution(subject: Subject, threat_model: ThreatModel, seed: int) -> Diagnosis:
    """Digits of margin and cross-entropy, on correctly classified samples."""
    probing = Probing(subject, threat_model, seed)
    labels = subject.labels.cpu()
    gradient = probing.gradient(margin_loss)
    ways = [probing.noise(0), probing.noise(1)]
    if gradient is not None:
        ways.append(probing.uphill(gradient))
    clean = probing.logits(probing.inputs)
    moved = [probing.logits(probing.moved(way, 1 / 16)) for way in ways]
    margins = torch.stack([(margin(z, labels) - margin(clean, labels)).abs() for z in moved])
    units = float((margins.amax(dim=0) / probing.rounding()).median())
    losses = _losses(clean, labels)
    steps = torch.stack([(_losses(z, labels) - losses).abs() for z in moved]).amax(dim=0)
    # A float32's step at the loss itself; where it is smaller than any, there is nothing to climb.
    loss_units = float(
        (steps / (torch.finfo(torch.float32).eps * losses.clamp_min(1e-37))).median()
    )
    gone = float((_slopes(clean, labels) < _GONE).double().mean())
    levels = len(set(clean.flatten().tolist()))
    reasons = []
    if units < _UNITS:
        reasons.append(f"the margin changes by {units:.3g} units in the last place of the logits")
    if loss_units < _UNITS:
        reasons.append(f"the cross-entropy changes by {loss_units:.3g} of its own")
    if gone > _FEW:
        reasons.append(f"its slope is below {_GONE:.0e} for {gone:.0%} of the samples")
    if levels <= 4:
        reasons.append(f"the outputs take {levels} values in all")
    told = "; ".join(reasons) or (
        f"the margin changes by {units:.2g} units in the last place of the logits, the "
        f"cross-entropy by {loss_units:.2g}, and its slope is lost for {gone:.0%} of the samples"
    )
    return Diagnosis(
        test="resolution",
        outcome="masked" if reasons else "sound",
        evidence=f"within ε/16 {told} (medians; logits reach {float(clean.abs().max()):.3g} in "
        f"{str(probing.kind).removeprefix('torch.')})",
        value=min(units, loss_units, 1e30),
        threshold=_UNITS,
        asks_for=("scale-free", "square-more") if reasons else (),
    )


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropies, float32 as attacks see them, (N,) in float64."""
    return cross_entropy(logits.float(), labels, labels)[0].double()


def _slopes(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest slope of the cross-entropy with respect to a logit, float32 (N,)."""
    return cross_entropy(logits.float(), labels, labels)[1].abs().amax(dim=1)
