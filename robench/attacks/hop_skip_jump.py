"""HopSkipJump: a walk along the decision boundary that is told labels and nothing else.

Chen, Jordan & Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack", IEEE S&P 2020;
reference Jianbo-Lab/HSJA. Each step has the paper's three parts: the boundary's normal is estimated
from the labels of points around the last one on it, the search jumps along the normal by
distance/√t, halved until the label is wrong there, and goes back towards the clean input as far as it
stays wrong.

What differs: a search begins at the nearest samples of another class, which are known to lie beyond
the boundary; it first asks for the point on the ball's surface, and ends if that is wrong; and probes
that all say the same are sent further out the next time, so that steps in the input, such as a
quantiser's, are stepped over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.base import Attack, Query, Slots, State, limited
from robench.errors import AttackError
from robench.geometry import expand, norm_of, project, random_noise, steepest, unit, with_rows

_HALVINGS = 10
"""Of the way from the last wrong point to the ball"""
_SHORTER = 12
"""Times that a jump is halved at most"""
_AT_ONCE = 16
"""Draws of a search in a pass"""
_NOISE_STARTS = 16
"""Random images that are tried where no sample of another class is known"""
_FIRST_REACH, _LEAST_REACH, _MOST_REACH = 0.1, 0.01, 0.5
"""Shares of the distance to the clean input at which probes lie around the point"""


@dataclass
class HopSkipJumpState(State):
    """HopSkipJump's slots."""

    far: Tensor
    """(B, C, H, W): the nearest point that is known to be misclassified, on the boundary's far side"""
    distance: Tensor
    """(B,): how far that is from the clean input in the ball's norm; +inf where none is known"""
    reach: Tensor
    """(B,): the share of ``distance`` at which probes lie around it"""


@dataclass(eq=False, kw_only=True)
class HopSkipJump(Attack[HopSkipJumpState]):
    """HopSkipJump for Linf and L2; labels alone.

    Raises:
        AttackError: it is not defined for the threat model's norm, or a parameter makes no sense.
    """

    can_target = True
    starts_from_others = True
    kind = "boundary"
    state_type = HopSkipJumpState
    name: str = "hop-skip-jump"
    steps: int = limited(30, at_least=1)
    """Jumps"""
    draws: int = limited(100, at_least=2)
    """Probes around the first point; √t times as many around the t-th"""
    most_draws: int = limited(10000, at_least=2)
    """Around any point"""
    restarts: int = limited(1, at_least=1)
    """Searches, each from another sample, the nearest first"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm == "L1":
            raise AttackError(
                f"{self.name} is defined under Linf and L2, not under L1",
                hint="square searches without gradients under L1 too",
            )

    def searches(self, num_classes: int) -> int:
        """One for each restart."""
        return self.restarts

    def most_steps(self) -> int:
        """Jumps."""
        return self.steps

    def start(self, query: Query, slots: Slots) -> HopSkipJumpState:
        """Begin at a sample of another class, or of the target's; without one at a random image."""
        far, known = self._nearest_other(slots)
        keys = seeding.derive(slots.keys, seeding.tag("random image"))
        for draw in range(_NOISE_STARTS):
            open_ = (~known).nonzero().squeeze(1)
            if not len(open_):
                break
            drawn = seeding.uniform(seeding.derive(keys[open_], draw), tuple(far.shape[1:]))
            wrong, _ = self._is_wrong(query, drawn, slots.labels, open_)
            far = far.index_copy(0, open_[wrong], drawn[wrong])
            known = known.index_fill(0, open_[wrong], True)
        distance = torch.where(known, norm_of(far - slots.inputs, self.norm), torch.inf)
        state = HopSkipJumpState(
            **slots.fresh(),
            far=far,
            distance=distance,
            reach=torch.full_like(distance, _FIRST_REACH),
        )
        state = replace(state, step=torch.where(known, state.step, self.steps))
        return self._towards_input(query, state)

    def step(self, query: Query, state: HopSkipJumpState) -> HopSkipJumpState:
        """Estimate the normal, jump along it, and come back towards the clean input."""
        normal, reach = self._normal(query, state)
        far = self._jump(query, state, normal)
        distance = norm_of(far - state.inputs, self.norm)
        moved = replace(state, far=far, distance=distance, reach=reach, step=state.step + 1)
        return self._towards_input(query, moved)

    def _is_wrong(
        self, query: Query, points: Tensor, labels: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Whether points of ``rows`` reach the goal, bool (B′,), and their margins, (B′,)."""
        logits, classes = query.logits(points, rows), labels[rows]
        reached = self.goal.reached(logits.argmax(dim=1), classes) & logits.isfinite().all(dim=1)
        return reached, self.goal.margin(logits, classes)

    def _nearest_other(self, slots: Slots) -> tuple[Tensor, Tensor]:
        """The sample that each search begins at, (B, C, H, W), and whether there is one, bool (B,)."""
        known = torch.zeros_like(slots.labels, dtype=torch.bool)
        others = slots.others
        if others is None or not len(others.labels):
            return slots.inputs, known
        fits = self.goal.reached(others.labels[None], slots.labels[:, None])
        order = float("inf") if self.norm == "Linf" else 2.0
        away = torch.cdist(
            slots.inputs.flatten(1),
            others.inputs.flatten(1),
            p=order,
            compute_mode="donot_use_mm_for_euclid_dist",
        )
        away = torch.where(fits, away, torch.inf)
        nth = slots.search.clamp(max=away.shape[1] - 1)[:, None]
        chosen = away.argsort(dim=1, stable=True).gather(1, nth).squeeze(1)
        known = fits.sum(dim=1) > slots.search
        return torch.where(expand(known, slots.inputs), others.inputs[chosen], slots.inputs), known

    def _towards_input(self, query: Query, state: HopSkipJumpState) -> HopSkipJumpState:
        """From ``far`` towards the clean input as far as the label stays wrong.

        The candidate is where the way meets the ball's surface.
        """
        rows = state.distance.isfinite().nonzero().squeeze(1)
        if not len(rows):
            return state
        inputs, far, labels = state.inputs[rows], state.far[rows], state.labels
        low = torch.full_like(state.distance[rows], self.threat_model.radius)
        high = torch.maximum(state.distance[rows], low)
        inside = project(far, inputs, self.norm, low)
        wrong, margins = self._is_wrong(query, inside, labels, rows)
        high = torch.where(wrong, low, high)
        open_ = (high > low).nonzero().squeeze(1)
        for _ in range(_HALVINGS if len(open_) else 0):
            middle = (low[open_] + high[open_]) / 2
            points = project(far[open_], inputs[open_], self.norm, middle)
            beyond, _ = self._is_wrong(query, points, labels, rows[open_])
            high = high.index_copy(0, open_, torch.where(beyond, middle, high[open_]))
            low = low.index_copy(0, open_, torch.where(beyond, low[open_], middle))
        far = project(far, inputs, self.norm, high)
        return replace(
            state,
            far=state.far.index_copy(0, rows, far),
            distance=state.distance.index_copy(0, rows, norm_of(far - inputs, self.norm)),
            candidate=state.candidate.index_copy(0, rows, inside),
            # Of a tie the label says which side it is on.
            margin=state.margin.index_copy(
                0, rows, torch.where(wrong, margins, margins.clamp(1e-30))
            ),
        )

    def _normal(self, query: Query, state: HopSkipJumpState) -> tuple[Tensor, Tensor]:
        """The boundary's normal at ``far`` as labels around it tell it, (B, C, H, W), and the share of
        the distance at which the next probes lie, (B,)."""
        shape = tuple(state.inputs.shape[1:])
        keys = seeding.derive(state.keys, seeding.tag("probes"), state.step)
        count = (self.draws * (state.step + 1).sqrt()).long().clamp(max=self.most_draws)
        length = state.reach * torch.where(state.distance.isfinite(), state.distance, 0.0)
        wrongs, noises = torch.zeros_like(state.inputs), torch.zeros_like(state.inputs)
        wrong_count = torch.zeros_like(length)
        for first in range(0, int(count.max()), _AT_ONCE):
            draw = torch.arange(first, first + _AT_ONCE, device=count.device)
            rows, place = (draw < count[:, None]).nonzero(as_tuple=True)
            noise = unit(
                random_noise(seeding.derive(keys[rows], draw[place]), shape, self.norm), self.norm
            )
            centre, size = state.far[rows], expand(length[rows], noise)
            points = (centre + size * noise).clamp(0, 1)
            noise = (points - centre) / size.clamp_min(1e-12)  # what the box has left of it
            wrong, _ = self._is_wrong(query, points, state.labels, rows)
            # One draw of each search after the other: a sum's order is then the same in any batch.
            for at in range(_AT_ONCE):
                chosen = (place == at).nonzero().squeeze(1)
                here, seen = rows[chosen], wrong[chosen].to(length)
                noises[here] += noise[chosen]
                wrongs[here] += expand(seen, noise[chosen]) * noise[chosen]
                wrong_count[here] += seen
        share = wrong_count / count
        # The covariance of being wrong and the direction; where all agree, the mean of all draws.
        normal = wrongs - expand(share, noises) * noises
        normal = with_rows(normal, share == 1, noises)
        normal = with_rows(normal, share == 0, -noises)
        agree = (share < 0.05) | (share > 0.95)
        reach = torch.where(agree, state.reach * 2, state.reach * 0.75)
        return normal, reach.clamp(_LEAST_REACH, _MOST_REACH)

    def _jump(self, query: Query, state: HopSkipJumpState, normal: Tensor) -> Tensor:
        """From ``far`` along the normal, as far as the label is wrong there: (B, C, H, W)."""
        direction = steepest(normal, self.norm)
        size = state.distance / (state.step + 1).sqrt()
        far, open_ = state.far, state.distance.isfinite().nonzero().squeeze(1)
        for _ in range(_SHORTER):
            if not len(open_):
                break
            way = expand(size[open_], direction[open_]) * direction[open_]
            points = (state.far[open_] + way).clamp(0, 1)
            wrong, _ = self._is_wrong(query, points, state.labels, open_)
            far = far.index_copy(0, open_[wrong], points[wrong])
            open_ = open_[~wrong]
            size = size / 2
        return far
