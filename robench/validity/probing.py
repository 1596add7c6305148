"""What the tests for masking share: passes with the same draws, gradients, steps in the ball."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.losses import LabelLoss, margin
from robench.doctor.gradients import loss_gradient
from robench.doctor.subject import Subject
from robench.geometry import project, random_noise, steepest, unit
from robench.threat_models import ThreatModel


@dataclass(frozen=True)
class Probing:
    """A model's samples and the ball around them, asked with the same random draws every time.

    Randomness would look like a wrong gradient or a jump; it is for the doctor to find. A pass is of
    all samples, so that the draws of a sample are the same as well.

    Attributes:
        subject: the model and N correctly classified samples.
        threat_model: the ball; its targets play no part.
        seed: of all draws.
    """

    subject: Subject
    threat_model: ThreatModel
    seed: int

    @property
    def inputs(self) -> Tensor:
        """float32 (N, C, H, W) in [0, 1]."""
        return self.subject.inputs

    def draws(self) -> AbstractContextManager[None]:
        """In it a model draws the same every time."""
        return seeding.own_stream(self.seed, self.inputs.device)

    @torch.no_grad()
    def logits(self, points: Tensor) -> Tensor:
        """float64 (N, K) on the CPU, of one point for each sample, (N, C, H, W)."""
        with self.draws():
            return self.subject.forward(points).cpu().double()

    def margins(self, points: Tensor) -> Tensor:
        """float64 (N,) on the CPU: the label's logit less the largest other."""
        return margin(self.logits(points), self.subject.labels.cpu())

    def gradient(self, loss: LabelLoss) -> Tensor | None:
        """Of a loss at the inputs, float32 (N, C, H, W), finite; None where there is none."""
        try:
            with self.draws():
                found = loss_gradient(self.subject, loss)
        except Exception:  # Foreign code may raise anything, and some refuses gradients alone.
            return None
        return found if found is not None and bool(found.isfinite().all()) else None

    def noise(self, draw: int) -> Tensor:
        """A direction of norm 1 for each sample, (N, C, H, W), by its place among them."""
        places = torch.arange(len(self.inputs), device=self.inputs.device)
        keys = seeding.derive(places, self.seed, draw)
        norm = self.threat_model.norm
        shape = tuple(self.inputs.shape[1:])
        drawn = seeding.signs(keys, shape) if norm == "Linf" else random_noise(keys, shape, norm)
        return unit(drawn, norm)

    def uphill(self, gradient: Tensor) -> Tensor:
        """The direction of norm 1 along which a gradient promises most, (N, C, H, W)."""
        return steepest(gradient, self.threat_model.norm)

    def moved(self, direction: Tensor, share: float) -> Tensor:
        """The inputs, ``share`` of ε along a direction of norm 1, kept in the box."""
        eps = share * self.threat_model.radius
        return project(self.inputs + eps * direction, self.inputs, self.threat_model.norm, eps)

    @property
    def pixel_step(self) -> float:
        """How far a step of length ε along a random direction moves a typical pixel, in [0, 1]."""
        dimensions = self.inputs.shape[1:].numel()
        share = {"Linf": 1.0, "L2": 1 / math.sqrt(dimensions), "L1": 1 / dimensions}
        return float(self.threat_model.radius * share[self.threat_model.norm])

    def rounding(self) -> Tensor:
        """float64 (N,) on the CPU: a unit in the last place of each sample's largest logit."""
        kind = torch.finfo(self.kind)
        exponent = self.logits(self.inputs).abs().amax(dim=1).clamp_min(kind.tiny).log2().floor()
        return kind.eps * torch.exp2(exponent)

    @cached_property
    def kind(self) -> torch.dtype:
        """The floating-point type that the logits were made in, seen from their values.

        A network that computes in half precision and returns float32 has half precision.
        """
        with torch.no_grad(), self.draws():
            logits = self.subject.model(self.inputs.clone())
        if not logits.is_floating_point():
            return torch.float32
        for kind in (torch.float16, torch.bfloat16):
            if bool((logits == logits.to(kind)).all()):
                return kind
        return torch.float32


def eight_bits(length: Tensor) -> Tensor:
    """How much of the change on a way rounding to 256 levels could put into one jump.

    ``length`` (N,) is the farthest that a pixel moves, in [0, 1]: twice a level's share of it.
    """
    return (2 / 255 / length).clamp(max=1.0)
