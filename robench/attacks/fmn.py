"""The fast minimum-norm attack, FMN, for Linf, L2 and L1.

Pintor, Roli, Brendel & Biggio, "Fast minimum-norm adversarial attacks through adaptive norm
constraints", NeurIPS 2021, algorithm 1. Each step moves along the normalised
gradient of the margin and is projected onto a ball of the search's own, which shrinks after a find
and grows after a miss. Before the first find its radius is the distance to the boundary as the
linear model of the step has it, and a little more; the paper adds it to what the pixel box has left
of the perturbation, from where L2 searches never reach a distant boundary. Under Linf the steps are
along the gradient's signs and in proportion to that ball, where the paper normalises the gradient.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.attacks.base import Query, Slots, limited
from robench.attacks.losses import LOSSES
from robench.attacks.minimum_norm import MinimumNorm, MinimumNormState, cosine
from robench.geometry import DUAL, expand, norm_of, project, unit

_TINY = 1e-12


@dataclass
class AdaptiveBallState(MinimumNormState):
    """A minimum-norm search inside a ball that it changes after each step."""

    point: Tensor
    """(B, C, H, W): where the next evaluation takes place"""
    radius: Tensor
    """(B,): of the search's own ball"""


@dataclass(eq=False, kw_only=True)
class FMN(MinimumNorm[AdaptiveBallState]):
    """Fast minimum-norm attack; one gradient pass a step."""

    can_target = True
    state_type = AdaptiveBallState
    name: str = "fmn"
    steps: int = limited(100, at_least=1)
    """Gradient steps"""
    step_size: float = limited(1.0, above=0)
    """Length of the first step, falling to a hundredth along a cosine: under Linf each pixel's, as a
    share of the ball's radius, else the L2 length in [0, 1] pixel units"""
    shrinkage: float = limited(0.05, above=0, at_most=1)
    """Share by which the ball changes at first, falling to 0.001 along a cosine"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lengths = cosine(self.step_size, self.step_size / 100, self.steps)
        self._shares = cosine(self.shrinkage, min(self.shrinkage, 0.001), self.steps)

    def most_steps(self) -> int:
        """Gradient passes."""
        return self.steps

    def start(self, query: Query, slots: Slots) -> AdaptiveBallState:
        """Start at the clean input; no pass is spent."""
        radius = slots.inputs.new_full((len(slots.labels),), torch.inf)
        return AdaptiveBallState(**self.nothing_found(slots), point=slots.inputs, radius=radius)

    def step(self, query: Query, state: AdaptiveBallState) -> AdaptiveBallState:
        """Look at the point, change the ball, and move within it."""
        loss = self.goal.loss(LOSSES["margin"], state.labels, state.targets)
        _, lead, slope = query.gradient(state.point, loss)
        at, device = state.step.clamp(max=self.steps - 1), state.step.device
        length, share = self._lengths.to(device)[at], self._shares.to(device)[at]
        state = self.remember(state, state.point, lead, lead > 0)
        # On the linear model's boundary itself rounding would decide.
        reached = torch.where(state.radius.isfinite(), state.radius, 0.0)
        ahead = reached - lead * (1 + share) / (norm_of(slope, DUAL[self.norm]) + _TINY)
        wider = torch.where(state.found_size.isfinite(), state.radius * (1 + share), ahead)
        smaller = torch.minimum(state.radius * (1 - share), state.found_size)
        radius = torch.where(lead > 0, smaller, wider)
        # A normalised gradient hardly moves most pixels, and a Linf ball asks for all of them.
        steepest = slope.sign() if self.norm == "Linf" else unit(slope, "L2")
        length = length * radius if self.norm == "Linf" else length
        moved = state.point + expand(length, slope) * steepest
        moved = project(moved, state.inputs, self.norm, radius)
        return self.conclude(query, replace(state, point=moved, radius=radius), state.point)
