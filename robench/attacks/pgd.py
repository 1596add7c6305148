"""Projected gradient descent with a fixed step (Madry et al., ICLR 2018), and FGSM.

FGSM (Goodfellow et al., ICLR 2015) is PGD with one step of length ε from the clean input; the
CW attack of the L∞ literature is PGD on the margin loss. All three are entries of a suite. A variant
with another direction, momentum or loss is a subclass that overrides one method: :meth:`PGD.ascent`,
:meth:`PGD.objective`, or :meth:`PGD.kept`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.base import Attack, Gradient, Query, Slots, State, evaluate, limited
from robench.attacks.losses import LOSSES, Loss, require_classes
from robench.errors import AttackError
from robench.geometry import project, random_point, steepest
from robench.registry import unknown_name


@dataclass
class PGDState(State):
    """PGD's slots."""

    point: Tensor
    """(B, C, H, W): where the next evaluation takes place"""
    history: Tensor
    """int64 (B, steps + 1): hashes of the points seen, to notice a repetition"""
    repeated: Tensor
    """bool (B,)"""
    memory: Tensor
    """(B, C, H, W) for variants that remember, zero at the start; else (B, 0)"""


@dataclass(eq=False, kw_only=True)
class PGD(Attack[PGDState]):
    """Steepest ascent on a loss, projected onto the ball after each step.

    Raises:
        AttackError: a parameter that makes no sense.
        UnknownNameError: a loss that is not one of these.
    """

    can_target = True
    remembers = False
    """Whether steps depend on earlier ones, through ``PGDState.memory``."""
    state_type: ClassVar[type[PGDState]] = PGDState
    name: str = "pgd"
    steps: int = limited(20, at_least=1)
    """Gradient steps"""
    relative_step_size: float = 0.25
    """Step length as a share of ε"""
    step_size: float | None = None
    """Step length in [0, 1] pixel units, instead of the share"""
    restarts: int = limited(1, at_least=1)
    """Independent searches a sample"""
    random_start: bool = True
    """Start from a random point of the ball, else from the clean input"""
    loss: str = "ce"
    """``ce``, ``margin`` or ``dlr``"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in (allowed := ["ce", "margin", "dlr"]):
            raise unknown_name("loss", self.loss, allowed)
        if self.length <= 0:
            raise AttackError(f"{self.name}: the step size must be positive, got {self.length}")
        # Sign steps of one length move on a finite lattice: once a point comes back, so does all
        # that followed it (arXiv 2503.19347). The other norms do not return to a point exactly, and
        # of a variant's steps nothing is known.
        self.can_repeat = self.norm == "Linf" and self.steps > 2 and type(self) is PGD

    @property
    def length(self) -> float:
        """Of a step, in [0, 1] pixel units."""
        share = self.relative_step_size * self.threat_model.radius
        return share if self.step_size is None else self.step_size

    def searches(self, num_classes: int) -> int:
        """One search for each restart."""
        require_classes(self.loss, num_classes)
        return self.restarts

    def most_steps(self) -> int:
        """Evaluations: the start and the point after each step."""
        return self.steps + 1

    def start(self, query: Query, slots: Slots) -> PGDState:
        """Place the searches; no pass is spent."""
        point = slots.inputs
        if self.random_start:
            point = random_point(slots.inputs, self.norm, self.threat_model.radius, slots.keys)
        count = len(slots.labels)
        return PGDState(
            **slots.fresh() | {"candidate": point},
            point=point,
            history=slots.labels.new_zeros((count, self.steps + 1 if self.can_repeat else 0)),
            repeated=torch.zeros_like(slots.labels, dtype=torch.bool),
            memory=torch.zeros_like(point) if self.remembers else point.new_zeros((count, 0)),
        )

    def objective(self, state: PGDState) -> Loss:
        """The loss that is maximised, bound to the slots."""
        return self.goal.loss(LOSSES[self.loss], state.labels, state.targets)

    def ascent(self, seen: Gradient, state: PGDState) -> tuple[Tensor, Tensor]:
        """Where the next step goes, of length 1 in the ball's norm, and the memory after it.

        What was ``seen`` is so at ``state.point``; the gradient is zero where all steps are done.
        """
        return steepest(seen.gradient, self.norm), state.memory

    def kept(self, points: Tensor, inputs: Tensor) -> Tensor:
        """The points (B, C, H, W) of the ball around ``inputs`` that stand for these ones."""
        return project(points, inputs, self.norm, self.threat_model.radius)

    def step(self, query: Query, state: PGDState) -> PGDState:
        """Evaluate the current points and move those that have steps left."""
        going_on = state.step < self.steps
        seen = evaluate(query, state.point, self.objective(state), going_on)
        direction, memory = self.ascent(seen, state)
        ahead = state.point + self.length * direction
        moved = self.kept(ahead, state.inputs)
        history, repeated = state.history, state.repeated
        if self.can_repeat:
            code = fingerprint(state.point)
            repeated = (history == code[:, None]).any(dim=1)
            history = history.scatter(1, state.step.clamp(max=self.steps)[:, None], code[:, None])
        return replace(
            state,
            step=state.step + 1,
            candidate=state.point,
            margin=self.goal.margin(seen.logits, state.labels),
            point=moved,
            history=history,
            repeated=repeated,
            memory=memory,
        )

    def finished(self, state: PGDState) -> Tensor:
        """Budget used, or the point has been seen before and the rest is known."""
        return super().finished(state) | state.repeated


def fingerprint(points: Tensor) -> Tensor:
    """A 64-bit hash of each point's exact float32 bits: (B, …) → int64 (B,), never 0.

    Every (pixel, value) gets a number of its own and the numbers are added up. They must look
    random: points of a lattice differ in the same few values at different pixels, and weights
    with any regularity would make such sums coincide.
    """
    words = points.contiguous().flatten(1).view(torch.int32).to(torch.int64) & 0xFFFFFFFF
    places = torch.arange(words.shape[1], device=points.device) << 32
    codes = seeding.mix(words + places).sum(dim=1)
    return torch.where(codes == 0, 1, codes)
