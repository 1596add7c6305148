"""Projected gradient descent with a fixed step (Madry et al., ICLR 2018), and FGSM.

FGSM (Goodfellow et al., ICLR 2015) is PGD with one step of length ε from the clean input; the
CW attack of the L∞ literature is PGD on the margin loss. All three are entries of a suite. A variant
with another direction, momentum or loss is a subclass that overrides one method: :meth:`PGD.ascent`
or :meth:`PGD.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.base import AttackKind, Gradient, Query, Slots, State, evaluate, fresh
from robench.attacks.losses import LOSSES, Loss, choose_loss, margin, require_classes
from robench.errors import AttackError
from robench.geometry import project, random_point, steepest
from robench.threat_models import ThreatModel


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


class PGD:
    """Steepest ascent on a loss, projected onto the ball after each step.

    Args:
        threat_model: the ball.
        steps: gradient steps.
        relative_step_size: step length as a share of ε.
        step_size: step length in [0, 1] pixel units, instead of the share.
        restarts: independent searches a sample.
        random_start: start from a random point of the ball, else from the clean input.
        loss: a registered loss: ``ce``, ``margin``, ``dlr``.

    Raises:
        AttackError: a parameter that makes no sense.
        UnknownNameError: a loss that is not one of these.
    """

    remembers = False
    """Whether steps depend on earlier ones, through ``PGDState.memory``."""
    runs_to_the_end = False
    kind: AttackKind = "gradient"
    state_type = PGDState

    def __init__(
        self,
        threat_model: ThreatModel,
        *,
        name: str = "pgd",
        steps: int = 20,
        relative_step_size: float = 0.25,
        step_size: float | None = None,
        restarts: int = 1,
        random_start: bool = True,
        loss: str = "ce",
    ) -> None:
        if steps < 1 or restarts < 1:
            raise AttackError(f"{name}: steps and restarts must be at least 1")
        self.name = name
        self.threat_model = threat_model
        self.num_steps = steps
        self.step_size = (
            step_size if step_size is not None else (relative_step_size * threat_model.radius)
        )
        if self.step_size <= 0:
            raise AttackError(f"{name}: the step size must be positive, got {self.step_size}")
        self.restarts = restarts
        self.random_start = random_start
        self.loss = choose_loss(loss, ("ce", "margin", "dlr"))
        # Sign steps of one length move on a finite lattice: once a point comes back, so does all
        # that followed it (arXiv 2503.19347). The other norms do not return to a point exactly, and
        # of a variant's steps nothing is known.
        self.can_repeat = threat_model.norm == "Linf" and steps > 2 and type(self) is PGD

    def searches(self, num_classes: int) -> int:
        """One search for each restart."""
        require_classes(self.loss, num_classes)
        return self.restarts

    def steps(self) -> int:
        """Evaluations: the start and the point after each step."""
        return self.num_steps + 1

    def start(self, query: Query, slots: Slots) -> PGDState:
        """Place the searches; no pass is spent."""
        point = slots.inputs
        if self.random_start:
            radius = self.threat_model.radius
            point = random_point(slots.inputs, self.threat_model.norm, radius, slots.keys)
        count = len(slots.labels)
        return PGDState(
            **fresh(slots) | {"candidate": point},
            point=point,
            history=slots.labels.new_zeros((count, self.num_steps + 1 if self.can_repeat else 0)),
            repeated=torch.zeros_like(slots.labels, dtype=torch.bool),
            memory=torch.zeros_like(point) if self.remembers else point.new_zeros((count, 0)),
        )

    def objective(self, state: PGDState) -> Loss:
        """The loss that is maximised, bound to the slots."""
        return Loss(LOSSES[self.loss], state.labels, state.targets)

    def ascent(self, seen: Gradient, state: PGDState) -> tuple[Tensor, Tensor]:
        """Where the next step goes, of length 1 in the ball's norm, and the memory after it.

        Args:
            seen: logits, losses and gradient at ``state.point``; the gradient is zero for slots
                whose last step is done.
            state: the slots before the step.
        """
        return steepest(seen.gradient, self.threat_model.norm), state.memory

    def step(self, query: Query, state: PGDState) -> PGDState:
        """Evaluate the current points and move those that have steps left."""
        going_on = state.step < self.num_steps
        seen = evaluate(query, state.point, self.objective(state), going_on)
        direction, memory = self.ascent(seen, state)
        ahead = state.point + self.step_size * direction
        moved = project(ahead, state.inputs, self.threat_model.norm, self.threat_model.radius)
        history, repeated = state.history, state.repeated
        if self.can_repeat:
            code = fingerprint(state.point)
            repeated = (history == code[:, None]).any(dim=1)
            history = history.scatter(
                1, state.step.clamp(max=self.num_steps)[:, None], code[:, None]
            )
        return replace(
            state,
            step=state.step + 1,
            candidate=state.point,
            margin=margin(seen.logits, state.labels),
            point=moved,
            history=history,
            repeated=repeated,
            memory=memory,
        )

    def finished(self, state: PGDState) -> Tensor:
        """Budget used, or the point has been seen before and the rest is known."""
        return (state.step > self.num_steps) | state.repeated


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
