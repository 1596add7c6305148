"""The minimum-norm L2 attack of Carlini & Wagner, "Towards evaluating the robustness of neural
networks", IEEE S&P 2017, section VI-A.

It minimises ‖x′ − x‖² + c·max(z_y − max_{j≠y} z_j + κ, 0) over w with x′ = (tanh w + 1)/2, by Adam,
and finds c by binary search.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench.attacks.base import Query, Slots, limited
from robench.attacks.losses import LOSSES
from robench.attacks.minimum_norm import MinimumNorm, MinimumNormState
from robench.geometry import expand

_BETA_1, _BETA_2, _ADAM_EPS = 0.9, 0.999, 1e-8
_INSIDE = 1 - 1e-6  # keeps atanh finite at the borders of the box


@dataclass
class CarliniWagnerState(MinimumNormState):
    """The attack's slots."""

    w: Tensor
    first_moment: Tensor
    second_moment: Tensor
    const: Tensor
    lower: Tensor
    upper: Tensor
    succeeded: Tensor
    """bool (B,): adversarial at some step of the current round"""


@dataclass(eq=False, kw_only=True)
class CarliniWagnerL2(MinimumNorm[CarliniWagnerState]):
    """Carlini & Wagner's L2 attack."""

    can_target = True
    state_type = CarliniWagnerState
    only = "L2"
    name: str = "cw-l2"
    rounds: int = limited(9, at_least=1)
    """Binary search steps for c"""
    steps: int = limited(100, at_least=1)
    """Adam steps in each round"""
    learning_rate: float = limited(0.05, above=0)
    """Adam's, in tanh space"""
    initial_const: float = limited(0.1, above=0)
    """The first c"""
    confidence: float = limited(0.0, at_least=0)
    """κ, in logits"""

    def most_steps(self) -> int:
        """Gradient passes over all rounds."""
        return self.rounds * self.steps

    def start(self, query: Query, slots: Slots) -> CarliniWagnerState:
        """Start at the clean input; no pass is spent."""
        w = _to_tanh_space(slots.inputs)
        zeros = slots.inputs.new_zeros(len(slots.labels))
        return CarliniWagnerState(
            **self.nothing_found(slots),
            w=w,
            first_moment=torch.zeros_like(w),
            second_moment=torch.zeros_like(w),
            const=zeros + self.initial_const,
            lower=zeros,
            upper=zeros + torch.inf,
            succeeded=zeros.bool(),
        )

    def step(self, query: Query, state: CarliniWagnerState) -> CarliniWagnerState:
        """One Adam step; at the end of a round also one step of the binary search."""
        tanh = state.w.tanh()
        point = (tanh + 1) / 2
        loss = self.goal.loss(LOSSES["margin"], state.labels, state.targets)
        _, lead, slope = query.gradient(point, loss)
        crossed = lead > self.confidence
        # Where the hinge is closed only the distance pulls.
        pull = torch.where(lead < self.confidence, state.const, 0.0)
        descent = 2 * (point - state.inputs) - expand(pull, point) * slope
        state = self._adam(state, descent * (1 - tanh.square()) / 2)
        state = self.remember(state, point, lead, crossed)
        state = replace(state, succeeded=state.succeeded | crossed)
        state = self.conclude(query, state, point)
        ends = state.step % self.steps == 0
        return self._next_round(state, ends) if bool(ends.any()) else state

    def _adam(self, state: CarliniWagnerState, gradient: Tensor) -> CarliniWagnerState:
        first = _BETA_1 * state.first_moment + (1 - _BETA_1) * gradient
        second = _BETA_2 * state.second_moment + (1 - _BETA_2) * gradient.square()
        count = expand((state.step % self.steps + 1).to(gradient.dtype), gradient)
        mean = first / _bias(_BETA_1, count)
        spread = (second / _bias(_BETA_2, count)).sqrt() + _ADAM_EPS
        w = state.w - self.learning_rate * mean / spread
        return replace(state, w=w, first_moment=first, second_moment=second)

    def _next_round(self, state: CarliniWagnerState, ends: Tensor) -> CarliniWagnerState:
        won = ends & state.succeeded
        lost = ends & ~state.succeeded
        upper = torch.where(won, torch.minimum(state.upper, state.const), state.upper)
        lower = torch.where(lost, torch.maximum(state.lower, state.const), state.lower)
        middle = torch.where(upper.isfinite(), (lower + upper) / 2, state.const * 10)
        again = expand(ends, state.w)
        return replace(
            state,
            lower=lower,
            upper=upper,
            const=torch.where(ends, middle, state.const),
            w=torch.where(again, _to_tanh_space(state.inputs), state.w),
            first_moment=torch.where(again, 0.0, state.first_moment),
            second_moment=torch.where(again, 0.0, state.second_moment),
            succeeded=state.succeeded & ~ends,
        )


# torch's own powers and atanh round an element by its place in the tensor, so that a result would
# depend on the batch; exponentials and logarithms do not.


def _bias(beta: float, count: Tensor) -> Tensor:
    """1 − β^count, Adam's correction."""
    return -torch.expm1(count * math.log(beta))


def _to_tanh_space(inputs: Tensor) -> Tensor:
    squeezed = (inputs * 2 - 1) * _INSIDE
    return (torch.log1p(squeezed) - torch.log1p(-squeezed)) / 2
