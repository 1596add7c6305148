"""Stability: how much the outputs change for steps that no attack would count.

The indicator "unstable loss" of Pintor et al. (NeurIPS 2022), told by three scales: the least step
that float32 can tell, a quarter of a grey level, and ε/100. The change is held against that of a random
step of length ε: a network's is in proportion to the step. A detector of inputs off the grey-level
grid says as much to a quarter of a level as to all of the ball, and so does a choice by a hash, or a
loss that is shattered into waves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robench.doctor.subject import Subject
from robench.records import Diagnosis
from robench.threat_models import ThreatModel
from robench.validity.probing import Probing, eight_bits

_DRAWS = 12
_QUARTER = 0.25 / 255
_JUMP = 0.05
_STEEPER = 5.0
"""Times that a small step may change the logits more than in proportion; of sound models the
largest is 1.1 (``benchmarks/results/diagnoses.md``)."""
_ASKS_FOR = ("on-grid", "smoothed", "distilled", "transfer", "square-more", "decision")


def stability(subject: Subject, threat_model: ThreatModel, seed: int) -> Diagnosis:
    """Change for steps that are next to none, on correctly classified samples."""
    probing = Probing(subject, threat_model, seed)
    inputs, clean = probing.inputs, probing.logits(probing.inputs)

    def change(points: Tensor) -> Tensor:
        """float64 (N,): of the logit that moves most."""
        return (probing.logits(points) - clean).abs().amax(dim=1)

    noise = [probing.noise(draw) for draw in range(1, _DRAWS + 1)]
    whole = torch.stack([change(probing.moved(d, 1)) for d in noise[:4]]).mean(dim=0)
    ulp = torch.nextafter(inputs, (inputs < 0.5).to(inputs))
    steps = {
        "a unit in the last place of each pixel": (0.0, [ulp]),
        "a quarter of a grey level": (
            _QUARTER / probing.pixel_step,
            [(inputs + _QUARTER * d.sign()).clamp(0, 1) for d in noise[:4]],
        ),
        "ε/100": (0.01, [probing.moved(d, 0.01) for d in noise]),
    }
    length = torch.tensor(probing.pixel_step, dtype=torch.float64)
    found = []
    for name, (share, points) in steps.items():
        changes = torch.stack([change(p) for p in points])
        changes[changes <= 16 * probing.rounding()] = 0.0
        ratio = float((changes.mean(dim=0) / whole).nan_to_num(nan=0.0, posinf=1.0).median())
        limit = min(_JUMP + float(eight_bits(length)) + _STEEPER * share, 0.9)
        found.append((ratio / limit, ratio, limit, name))
    excess, ratio, limit, _ = max(found)
    masked = excess > 1
    told = ", ".join(f"{ratio:.2g} of it for {name}" for _, ratio, _, name in found)
    return Diagnosis(
        test="stability",
        outcome="masked" if masked else "sound",
        evidence=f"against the change of the logits for a random step of length ε they change by {told} "
        "(medians)",
        value=ratio,
        threshold=limit,
        asks_for=_ASKS_FOR if masked else (),
    )
