"""The model with gradients averaged over noise, for outputs that are rugged or piecewise constant.

What is climbed is the mean over a neighbourhood, E[∇f(x + η)] (Duchi, Bartlett & Wainwright,
"Randomized smoothing for stochastic optimization", SIAM J. Optim. 2012; against masks Athalye,
Carlini & Wagner, ICML 2018). Where all these gradients are zero, the changes of the loss along
the draws take their place (Nesterov & Spokoiny, Found. Comput. Math. 2017).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.attacks.base import Gradient
from robench.attacks.losses import Loss
from robench.attacks.pgd import fingerprint
from robench.geometry import expand, random_point
from robench.stand_ins.base import Setting, StandIn
from robench.threat_models import Norm, ThreatModel

_DRAWS = 16
"""Points that one gradient is the mean of, the one that is asked for among them"""
_SHARES = (0.5, 0.25, 1.0)
"""Radii of the neighbourhood in turn, as shares of ε: a mask may be fine or coarse"""


@dataclass(eq=False)
class SmoothedModel(SearchModel):
    """Gradients that are means over points drawn around the one that is asked for.

    Draws are a function of the seed and of the point, so that a gradient does not depend on its
    batch, nor on when it is asked for.
    """

    threat_model: ThreatModel = field(kw_only=True)
    seed: int = field(kw_only=True)

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """The mean gradient; logits and losses are those of the points themselves."""
        first = super().gradient(points, loss)
        total, slope = first.gradient, torch.zeros_like(points)
        for around in self._neighbours(points):
            seen = super().gradient(around, loss)
            total = total + seen.gradient
            delta = around - points
            change = (seen.losses - first.losses) / delta.flatten(1).square().sum(1).clamp_min(
                1e-12
            )
            slope = slope + expand(change, delta) * delta
        flat = expand((total == 0).flatten(1).all(dim=1), total)
        return first._replace(gradient=torch.where(flat, slope, total) / self.passes)

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the points, and means of the gradients."""
        logits, total = super().jacobian(points)
        for around in self._neighbours(points):
            total = total + super().jacobian(around)[1]
        return logits, total / self.passes

    def steepness(
        self, points: Tensor, rivals: Tensor, labels: Tensor, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """Logits of the points, and means of the slopes' norms."""
        logits, total = super().steepness(points, rivals, labels, norm)
        for around in self._neighbours(points):
            total = total + super().steepness(around, rivals, labels, norm)[1]
        return logits, total / self.passes

    def _neighbours(self, points: Tensor) -> Iterator[Tensor]:
        keys = seeding.derive(fingerprint(points), seeding.tag("smoothed"), self.seed)
        for draw in range(self.passes - 1):
            radius = _SHARES[draw % len(_SHARES)] * self.threat_model.radius
            yield random_point(points, self.threat_model.norm, radius, seeding.derive(keys, draw))


class Smoothed(StandIn):
    """Builds the model with gradients averaged over noise."""

    exact = True

    def build(self, setting: Setting) -> SearchModel:
        """Every model can have it."""
        return SmoothedModel(
            setting.model,
            f"fp32, gradients averaged over {_DRAWS} points",
            passes=_DRAWS,
            threat_model=setting.threat_model,
            seed=setting.seed,
        )
