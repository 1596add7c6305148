"""Continuity: whether the outputs jump on the way from an input to another.

Networks are continuous, steep as they may be: halve a stretch often enough and its ends say the same.
Quantisers, argmax gates, votes, detectors of inputs and switches by a hash are not, and what they
hide lies beyond the jump, where no gradient leads. Each input is moved along the steepest step of
the ball, along a random one, and to a sample of another class; the stretch in which the logits
change most is halved until a jump is all that can be left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robench.attacks.losses import margin_loss
from robench.doctor.subject import Subject
from robench.geometry import norm_of
from robench.records import Diagnosis
from robench.threat_models import ThreatModel
from robench.validity.probing import Probing, eight_bits

_STRETCHES = 16
_HALVINGS = 12
_JUMP = 0.05
"""Share of the largest change on the way that a jump has; no sound model of
``benchmarks/results/diagnoses.md`` has one."""
_ROUNDINGS = 32
"""A jump has so many units in the last place of the logits at least."""
_FEW = 0.02
"""Share of the samples that may have one."""
_ASKS_FOR = ("bpda", "smoothed", "distilled", "transfer", "square-more", "decision")


def continuity(subject: Subject, threat_model: ThreatModel, seed: int) -> Diagnosis:
    """Jumps of the logits, on correctly classified samples."""
    probing = Probing(subject, threat_model, seed)
    gradient = probing.gradient(margin_loss)
    ways = {"a random step of length ε": probing.moved(probing.noise(0), 1)}
    if gradient is not None:
        ways["the gradient's step of length ε"] = probing.moved(probing.uphill(gradient), 1)
    if (others := _others(subject.labels)) is not None:
        ways["the way to a sample of another class"] = subject.inputs[others]
    jumping = {name: largest_jumps(probing, end) for name, end in ways.items()}
    shares = {name: float((jumps > 0).double().mean()) for name, jumps in jumping.items()}
    worst = max(shares, key=lambda name: shares[name])
    masked = shares[worst] > _FEW
    size = float(jumping[worst][jumping[worst] > 0].median()) if shares[worst] else 0.0
    return Diagnosis(
        test="continuity",
        outcome="masked" if masked else "sound",
        evidence=f"along {worst} the logits jump for {shares[worst]:.0%} of {len(subject.labels)} "
        f"samples" + (f", by {size:.0%} of their change on the way (median)" if size else ""),
        value=shares[worst],
        threshold=_FEW,
        asks_for=_ASKS_FOR if masked else (),
    )


def largest_jumps(probing: Probing, ends: Tensor) -> Tensor:
    """Of each sample on the straight way to its end, (N, C, H, W): float64 (N,).

    As a share of the largest change of a logit on the way; 0 where nothing jumps.
    """
    inputs = probing.inputs
    count = len(inputs)

    def logits(place: Tensor) -> Tensor:
        share = place.to(inputs).view(-1, 1, 1, 1)
        return probing.logits(inputs + share * (ends - inputs))

    places = torch.linspace(0, 1, _STRETCHES + 1, dtype=torch.float64)
    seen = torch.stack([logits(place.expand(count)) for place in places])
    whole = (seen - seen[0]).abs().amax(dim=(0, 2))
    rows = torch.arange(count)
    first = (seen[1:] - seen[:-1]).abs().amax(dim=2).argmax(dim=0)
    low, high = places[first], places[first + 1]
    low_logits, high_logits = seen[first, rows], seen[first + 1, rows]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        halfway = logits(middle)
        below = (halfway - low_logits).abs().amax(dim=1)
        left = below >= (high_logits - halfway).abs().amax(dim=1)
        low, high = torch.where(left, low, middle), torch.where(left, middle, high)
        low_logits = torch.where(left[:, None], low_logits, halfway)
        high_logits = torch.where(left[:, None], halfway, high_logits)
    jump = (high_logits - low_logits).abs().amax(dim=1)
    share = (jump / whole).nan_to_num(nan=0.0)
    length = norm_of(ends - inputs, "Linf").cpu().double()
    real = (share > _JUMP + eight_bits(length)) & (jump > _ROUNDINGS * probing.rounding())
    return torch.where(real, share, 0.0)


def _others(labels: Tensor) -> Tensor | None:
    """For each sample the place of the next one of another class, (N,); None: there is but one."""
    different = labels[:, None] != labels
    if not bool(different.any(dim=1).all()):
        return None
    count = len(labels)
    place = torch.arange(count, device=labels.device)
    ahead = (place - place[:, None]) % count
    return torch.where(different, ahead, count).argmin(dim=1)
