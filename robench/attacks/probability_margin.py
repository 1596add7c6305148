"""The probability margin attack, PMA.

Xie et al., "Towards million-scale adversarial robustness evaluation with stronger individual
attacks", CVPR 2025 (arXiv 2411.15210). With p = softmax(z), y the label and m the likeliest other
class, it ascends p_m − p_y, after having ascended one of its two parts: −p_y in one search, p_m in
the other. A targeted search has its target for m and the strongest other class for y. The very first step goes the wrong way, up p_y. Steps are PGD's, their length falling from
2ε to 0 along a cosine in each half of the budget.

The gradients are not those of the probabilities but what they are multiples of. With q the softmax
over the wrong classes alone, ∇(p_m − p_y) = (1 − p_y)·[q_m (e_m − p) − p_y (e_y − q)]. A step takes
the direction only, and the bracket, unlike the product, never vanishes: no logits are so far apart
that a step is lost. Under L2, which the paper does not treat, steps are normalised.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.base import Gradient, Query, Slots, limited
from robench.attacks.losses import Loss, best_other, lowered_label
from robench.attacks.pgd import PGD, PGDState
from robench.geometry import expand, steepest
from robench.registry import unknown_name

_UP, _DOWN, _RIVAL, _BOTH, _OUTPUT = range(5)
"""What a step ascends: p_y, −p_y, p_m, p_m − p_y, or a random direction w·z of the logits"""
_OUTPUT_STEPS = 2
"""Steps by which restarts leave their start along w·z (Tashiro et al., NeurIPS 2020)"""


@dataclass(frozen=True, kw_only=True)
class _Parts(Loss):
    """What each slot ascends at its step; the value is p_m − p_y whatever that is.

    A targeted search has the target for m and the strongest other class for y.
    """

    part: Tensor
    """int64 (B,): one of the above"""
    direction: Tensor
    """(B, K): w"""

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """p_m − p_y (B,) and the direction (B, K) that the slots' parts give the logits."""
        if self.towards:
            value, down, up, q_best, p_label = _parts(
                logits, best_other(logits, self.labels)[1], self.labels
            )
            # A target may be so unlikely that its q is 0; a direction is one without it.
            rival = up
        else:
            value, down, up, q_best, p_label = _parts(logits, self.labels)
            rival = q_best * up
        slopes = torch.stack((-down, down, rival, q_best * up + p_label * down, self.direction))
        return value, slopes[self.part, torch.arange(len(logits), device=logits.device)]

    def at(self, rows: Tensor | slice) -> Loss:
        """The same for the slots in ``rows``, int64 (B′,) or a range."""
        return replace(
            self,
            labels=self.labels[rows],
            targets=self.targets[rows],
            part=self.part[rows],
            direction=self.direction[rows],
        )


def probability_margin(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """p_m − p_y (N,), and its gradient (N, K) over 1 − p_y. ``targets`` is not used."""
    value, down, up, q_best, p_label = _parts(logits, labels)
    return value, q_best * up + p_label * down


def _parts(
    logits: Tensor, labels: Tensor, rivals: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """p_m − p_y (B,), −(e_y − q) and e_m − p, both (B, K), q_m and p_y, both (B, 1).

    m are the ``rivals``, (B,), or else the likeliest classes beside the labels.
    """
    minus_p_label, down = lowered_label(logits, labels, labels)
    p = logits.softmax(dim=1)
    best = down.max(dim=1, keepdim=True).indices if rivals is None else rivals[:, None]
    q_best = down.gather(1, best)
    value = p.gather(1, best).squeeze(1) + minus_p_label
    up = (-p).scatter_add(1, best, torch.ones_like(q_best))
    return value, down, up, q_best, -minus_p_label[:, None]


@dataclass
class PMAState(PGDState):
    """PGD's, with what tells one search from another."""

    search: Tensor
    """int64 (B,)"""
    direction: Tensor
    """(B, K): w, uniform in [−1, 1]"""


@dataclass(eq=False, kw_only=True)
class PMA(PGD):
    """Two searches for each restart, which differ in the part of the loss that they begin with."""

    can_target = True
    state_type: ClassVar[type[PGDState]] = PMAState
    name: str = "pma"
    steps: int = limited(100, at_least=2)
    """Gradient steps of one search"""
    relative_step_size: float = 1.0
    """Mean step length as a share of ε"""
    output_starts: str = "later"
    """Which restarts leave their start along a random direction of the output: ``later`` than the
    first, or ``all``"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output_starts not in (allowed := ["later", "all"]):
            raise unknown_name("output_starts", self.output_starts, allowed)
        half = self.steps // 2
        places = [step if step < half else step - half for step in range(self.steps + 1)]
        # By Python's cosine: torch rounds an element by its place in the tensor.
        self._lengths = torch.tensor([1 + math.cos(math.pi * at / half) for at in places])

    def searches(self, num_classes: int) -> int:
        """Two for each restart."""
        return 2 * super().searches(num_classes)

    def start(self, query: Query, slots: Slots) -> PMAState:
        """Place the searches at random points of the ball; no pass is spent."""
        state = super().start(query, slots)
        keys = seeding.derive(slots.keys, seeding.tag("output direction"))
        direction = 2 * seeding.uniform(keys, (slots.clean_logits.shape[1],)) - 1
        return PMAState(**vars(state), search=slots.search, direction=direction)

    def objective(self, state: PGDState) -> Loss:
        """The part of each slot's step."""
        assert isinstance(state, PMAState)
        part = torch.where(state.search % 2 == 0, _DOWN, _RIVAL)
        part = torch.where(state.step == 0, _UP, part)
        part = torch.where(state.step >= self.steps // 2, _BOTH, part)
        published = 2 if self.output_starts == "later" else 0
        leaving = (state.search >= published) & (state.step < _OUTPUT_STEPS)
        part = torch.where(leaving, _OUTPUT, part)
        loss = self.goal.loss(probability_margin, state.labels, state.targets)
        return _Parts(**vars(loss), part=part, direction=state.direction)

    def ascent(self, seen: Gradient, state: PGDState) -> tuple[Tensor, Tensor]:
        """Steepest, of the length that the schedule has for the step."""
        length = self._lengths.to(state.step.device)[state.step]
        return expand(length, state.point) * steepest(seen.gradient, self.norm), state.memory
