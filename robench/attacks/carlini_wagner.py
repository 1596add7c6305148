"""The minimum-norm L2 attack of Carlini & Wagner, "Towards evaluating the robustness of neural
networks", IEEE S&P 2017, section VI-A.

It minimises ‖x′ − x‖² + c·max(z_y − max_{j≠y} z_j + κ, 0) over w with x′ = (tanh w + 1)/2, by Adam,
and finds c by binary search. The smallest adversarial perturbation seen is the result, whether or
not it is inside the ball: ``found_size`` keeps its norm. A search that ends without one inside
proposes its result pulled back to the ball's surface, at one more forward pass: an attack on a ball
has a best point in it, and that is the one whose margin and attention can be spoken of.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robench.attacks.base import Attack, Query, Slots, State, limited
from robench.attacks.losses import LOSSES, Loss, margin
from robench.errors import AttackError
from robench.geometry import expand, norm_of, project

_BETA_1, _BETA_2, _ADAM_EPS = 0.9, 0.999, 1e-8
_INSIDE = 1 - 1e-6  # keeps atanh finite at the borders of the box


@dataclass
class CarliniWagnerState(State):
    """The attack's slots."""

    w: Tensor
    first_moment: Tensor
    second_moment: Tensor
    const: Tensor
    lower: Tensor
    upper: Tensor
    succeeded: Tensor
    """bool (B,): adversarial at some step of the current round"""
    best: Tensor
    best_margin: Tensor
    """(B,): margin of ``best``, +inf before the first find"""
    found_size: Tensor = field(kw_only=True)
    """(B,): L2 norm of the smallest adversarial perturbation, +inf before the first"""


@dataclass(eq=False, kw_only=True)
class CarliniWagnerL2(Attack[CarliniWagnerState]):
    """Carlini & Wagner's L2 attack; the ball's radius only decides the verdict, never the search.

    Raises:
        AttackError: the threat model's norm is not L2, or a parameter makes no sense.
    """

    runs_to_the_end = True
    state_type = CarliniWagnerState
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "L2":
            raise AttackError(
                f"{self.name} minimises the L2 norm and says nothing about {self.norm}",
                hint="Use it under an L2 threat model; for Linf use PGD on the margin loss",
            )

    def most_steps(self) -> int:
        """Gradient passes over all rounds."""
        return self.rounds * self.steps

    def start(self, query: Query, slots: Slots) -> CarliniWagnerState:
        """Start at the clean input; no pass is spent."""
        w = _to_tanh_space(slots.inputs)
        zeros = slots.inputs.new_zeros(len(slots.labels))
        return CarliniWagnerState(
            **slots.fresh(),
            w=w,
            first_moment=torch.zeros_like(w),
            second_moment=torch.zeros_like(w),
            const=zeros + self.initial_const,
            lower=zeros,
            upper=zeros + torch.inf,
            succeeded=zeros.bool(),
            best=slots.inputs,
            best_margin=zeros + torch.inf,
            found_size=zeros + torch.inf,
        )

    def step(self, query: Query, state: CarliniWagnerState) -> CarliniWagnerState:
        """One Adam step; at the end of a round also one step of the binary search."""
        tanh = state.w.tanh()
        point = (tanh + 1) / 2
        loss = Loss(LOSSES["margin"], state.labels, state.targets)
        _, lead, slope = query.gradient(point, loss)
        size = norm_of(point - state.inputs, "L2")
        crossed = lead > self.confidence
        smaller = crossed & (size < state.found_size)
        best = torch.where(expand(smaller, point), point, state.best)
        best_margin = torch.where(smaller, -lead, state.best_margin)
        found = torch.where(smaller, size, state.found_size)
        # Where the hinge is closed only the distance pulls.
        pull = torch.where(lead < self.confidence, state.const, 0.0)
        descent = 2 * (point - state.inputs) - expand(pull, point) * slope
        state = self._adam(state, descent * (1 - tanh.square()) / 2)
        state = replace(
            state,
            step=state.step + 1,
            best=best,
            best_margin=best_margin,
            found_size=found,
            succeeded=state.succeeded | crossed,
            # Inside the ball it is left as it is, up to the last bit.
            candidate=project(best, state.inputs, "L2", self.threat_model.radius),
            margin=torch.where(found <= self.threat_model.radius, best_margin, torch.inf),
        )
        outside = self.finished(state) & (found > self.threat_model.radius)
        if bool(outside.any()):
            state = self._pull_inside(query, state, outside, point)
        ends = state.step % self.steps == 0
        return self._next_round(state, ends) if bool(ends.any()) else state

    def _pull_inside(
        self, query: Query, state: CarliniWagnerState, rows: Tensor, point: Tensor
    ) -> CarliniWagnerState:
        """For ``rows``, bool (B,): propose the result, or the last point, on the ball's surface."""
        chosen = rows.nonzero().squeeze(1)
        inputs, found = state.inputs[chosen], state.found_size[chosen]
        ends = torch.where(expand(found.isfinite(), inputs), state.best[chosen], point[chosen])
        ends = project(ends, inputs, "L2", self.threat_model.radius)
        seen = margin(query.logits(ends, chosen), state.labels[chosen])
        size = torch.where(seen < 0, norm_of(ends - inputs, "L2"), torch.inf)
        return replace(
            state,
            candidate=state.candidate.index_copy(0, chosen, ends),
            margin=state.margin.index_copy(0, chosen, seen),
            found_size=state.found_size.index_copy(0, chosen, torch.minimum(found, size)),
        )

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
