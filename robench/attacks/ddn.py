"""Decoupled direction and norm, DDN, for L2.

Rony, Hafemann, Oliveira, Ben Ayed, Sabourin & Granger, "Decoupling direction and norm for efficient
gradient-based L2 adversarial attacks and defenses", CVPR 2019, algorithm 1. Each step turns the perturbation along the normalised gradient of the cross-entropy, and sets its norm:
smaller after a find, larger after a miss. Of the gradient its direction alone is used, which is
that of the softmax over the wrong classes less the label's unit vector: it does not vanish where
the model is confident.
"""

from dataclasses import dataclass, replace

import torch

from robench.attacks.base import Query, Slots, limited
from robench.attacks.fmn import AdaptiveBallState
from robench.attacks.losses import lowered_label
from robench.attacks.minimum_norm import MinimumNorm, cosine
from robench.errors import AttackError
from robench.geometry import expand, norm_of, unit

_TINY = 1e-12


@dataclass(eq=False, kw_only=True)
class DDN(MinimumNorm[AdaptiveBallState]):
    """DDN; one gradient pass a step."""

    can_target = True
    state_type = AdaptiveBallState
    only = "L2"
    name: str = "ddn"
    steps: int = limited(100, at_least=1)
    """Gradient steps"""
    initial_norm: float | None = None
    """Norm of the first perturbation, in [0, 1] pixel units, 1 in the paper; None: the distance to
    the boundary as the linear model at the clean input has it, from which fewer steps lead to it"""
    shrinkage: float = limited(0.05, above=0, below=1)
    """Share by which the norm changes after each step"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial_norm is not None and self.initial_norm <= 0:
            raise AttackError(
                f"{self.name}: initial_norm must be above 0, got {self.initial_norm!r}"
            )
        self._lengths = cosine(1.0, 0.01, self.steps)

    def most_steps(self) -> int:
        """Gradient passes."""
        return self.steps

    def start(self, query: Query, slots: Slots) -> AdaptiveBallState:
        """Start at the clean input; no pass is spent."""
        radius = slots.inputs.new_full((len(slots.labels),), self.initial_norm or torch.inf)
        return AdaptiveBallState(**self.nothing_found(slots), point=slots.inputs, radius=radius)

    def step(self, query: Query, state: AdaptiveBallState) -> AdaptiveBallState:
        """Look at the point, turn the perturbation, and set its norm."""
        loss = self.goal.loss(lowered_label, state.labels, state.targets)
        seen = query.gradient(state.point, loss)
        lead = -self.goal.margin(seen.logits, state.labels)
        length = self._lengths.to(state.step.device)[state.step.clamp(max=self.steps - 1)]
        state = self.remember(state, state.point, lead, lead > 0)
        share = torch.where(lead > 0, 1 - self.shrinkage, 1 + self.shrinkage)
        furthest = norm_of(torch.maximum(state.inputs, 1 - state.inputs), "L2")
        nearest = lead.abs() / (norm_of(seen.gradient, "L2") + _TINY)
        radius = torch.where(state.radius.isfinite(), state.radius, nearest) * share
        radius = torch.minimum(radius, furthest)
        turned = state.point - state.inputs
        turned = turned + expand(length, turned) * unit(seen.gradient, "L2")
        moved = (state.inputs + expand(radius, turned) * unit(turned, "L2")).clamp(0, 1)
        return self.conclude(query, replace(state, point=moved, radius=radius), state.point)
