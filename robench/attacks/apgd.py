"""Auto-PGD: gradient ascent with momentum and a step size that halves itself.

Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks", ICML 2020, algorithm 1; for L1 Croce & Hein, "Mind the box", ICML 2021.
Schedules and constants are those of fra31/auto-attack (``autopgd_base.py``), so that from the
same start the iterates are the reference's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from robench.attacks.base import Attack, Gradient, Query, Slots, State, evaluate, limited
from robench.attacks.losses import LOSSES, Loss, require_classes
from robench.attacks.target_order import nearest_ranks, require_target_order, searches_of
from robench.errors import AttackError
from robench.geometry import by_blocks, expand, norm_of, project, random_noise, unit, with_rows
from robench.registry import unknown_name
from robench.threat_models import Norm, ThreatModel

_RHO = 0.75  # share of steps that must raise the loss for the step size to stay
_MOMENTUM = 0.75  # weight of the new step against the last one


@dataclass
class APGDState(State):
    """APGD's slots."""

    point: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    last_loss: Tensor
    step_size: Tensor
    """(B,), in [0, 1] pixel units"""
    increases: Tensor
    """(B,): steps since the last checkpoint that raised the loss"""
    checked_loss: Tensor
    """(B,): the best loss at the last checkpoint"""
    reduced: Tensor
    """bool (B,): the step size was halved at the last checkpoint"""
    sparsity: Tensor
    """(B,): L1 only, the share of coordinates that a step changes"""
    nonzeros: Tensor
    """(B,): L1 only, changed coordinates of the best point at the last checkpoint"""


@dataclass(eq=False, kw_only=True)
class APGD(Attack[APGDState]):
    """Auto-PGD for Linf, L2 and L1.

    Raises:
        AttackError: a parameter that makes no sense.
        UnknownNameError: a loss or an order of targets that is not one of these.
    """

    can_target = True
    state_type = APGDState
    name: str = "apgd"
    steps: int = limited(100, at_least=1)
    """Gradient steps"""
    restarts: int = limited(1, at_least=1)
    """Independent searches for each target"""
    loss: str = "ce"
    """``ce``, ``dlr``, or ``dlr-targeted``"""
    targets: int = limited(9, at_least=1)
    """For a targeted loss, how many of the classes next to the label are aimed at, from the most
    to the least likely on the clean input; a target that is given is the only one"""
    target_order: str = "logits"
    """``logits``, or ``malt``: the nearest linearised boundaries first"""
    eot: int = limited(1, at_least=1)
    """Passes averaged into one gradient, for randomised models"""
    shrinking_eps: bool = False
    """L1 only: 30 % of the steps at 3ε, 30 % at 2ε, the rest, and one step at least, at ε"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in (allowed := ["ce", "dlr", "dlr-targeted"]):
            raise unknown_name("loss", self.loss, allowed)
        if self.shrinking_eps and self.norm != "L1":
            raise AttackError(f"{self.name}: shrinking_eps is defined for L1 only")
        require_target_order(self.target_order)
        # Where a target is given, that is the one.
        self.each_target = self.loss == "dlr-targeted" and not self.goal.towards
        self.schedule = _Schedule.of(self.steps, self.threat_model, self.shrinking_eps)
        self.phases = int(self.schedule.begins.sum())
        self.scale = 1.0 if self.norm == "L1" else 2.0  # first step size, as a share of ε

    def searches(self, num_classes: int) -> int:
        """One search for each target and restart; no more targets than wrong classes."""
        require_classes(self.loss, num_classes)
        targets = min(self.targets, num_classes - 1) if self.each_target else 1
        return targets * self.restarts

    def most_steps(self) -> int:
        """Gradient steps."""
        return self.steps

    def search_order(
        self, query: Query, inputs: Tensor, labels: Tensor, clean_logits: Tensor
    ) -> Tensor | None:
        """By ``target_order``."""
        if not (self.each_target and self.target_order == "malt"):
            return None
        ranks = nearest_ranks(query, inputs, labels, clean_logits, self.norm, self.targets)
        return searches_of(ranks, self.targets, self.restarts)

    def start(self, query: Query, slots: Slots) -> APGDState:
        """Place the searches at random points of the ball and take the first gradients."""
        targets = slots.targets(self.restarts) if self.each_target else slots.labels
        state = slots.fresh(targets)
        everything = torch.arange(len(targets), device=targets.device)
        begun = self._begin(query, State(**state), everything, self._random_start(slots))
        return APGDState(**state | begun)

    def _random_start(self, slots: Slots) -> Tensor:
        shape = tuple(slots.inputs.shape[1:])
        eps = float(self.schedule.eps[0])
        noise = random_noise(slots.keys, shape, self.norm)
        if self.norm == "L1":
            return project(slots.inputs + noise, slots.inputs, "L1", eps)
        # The reference starts on the ball's surface: the largest coordinate moves by ε exactly.
        return (slots.inputs + eps * unit(noise, self.norm)).clamp(0, 1)

    def _begin(self, query: Query, state: State, rows: Tensor, points: Tensor) -> dict[str, Tensor]:
        """What a run of the slots in ``rows``, int64 (B′,), begins with at ``points``."""
        inputs, labels, targets = state.inputs[rows], state.labels[rows], state.targets[rows]
        eps = self.schedule.at(state.step[rows]).eps
        loss = self.goal.loss(LOSSES[self.loss], labels, targets)
        seen = self._gradient(query, points, loss, torch.ones_like(labels, dtype=torch.bool), rows)
        zeros = torch.zeros_like(seen.losses)
        dimensions = points.shape[1:].numel()
        changed = _count_changed(points, inputs)
        if self.phases == 1:  # nothing is known yet of how sparse the best point is
            sparsity, nonzeros = zeros + 0.2, zeros + dimensions
        else:
            sparsity, nonzeros = changed / dimensions / 1.5, changed
        return {
            "point": points,
            "previous": points,
            "gradient": seen.gradient,
            "best": points,
            "best_gradient": seen.gradient,
            "best_loss": seen.losses,
            # The reference compares the first loss of a run with zero.
            "last_loss": zeros,
            "step_size": self.scale * eps,
            "increases": zeros,
            "checked_loss": seen.losses,
            "reduced": zeros == 0,
            "sparsity": sparsity,
            "nonzeros": nonzeros,
            "candidate": points,
            "margin": self._margin(seen, labels, eps),
        }

    def _margin(self, seen: Gradient, labels: Tensor, eps: Tensor) -> Tensor:
        # The early phases of L1 search a larger ball than the threat model's.
        inside = eps <= self.threat_model.radius * (1 + 1e-6)
        return torch.where(inside, self.goal.margin(seen.logits, labels), torch.inf)

    def _gradient(
        self, query: Query, points: Tensor, loss: Loss, needed: Tensor, rows: Tensor | None = None
    ) -> Gradient:
        seen = evaluate(query, points, loss, needed, rows)
        total = seen.gradient
        for _ in range(self.eot - 1):
            seen = evaluate(query, points, loss, needed, rows)
            total = total + seen.gradient
        return seen if self.eot == 1 else seen._replace(gradient=total / self.eot)

    def step(self, query: Query, state: APGDState) -> APGDState:
        """Move, evaluate, remember the best, and adapt the step size at checkpoints."""
        now = self.schedule.at(state.step)
        if self.phases > 1 and bool((entering := now.begins & (state.step > 0)).any()):
            rows = entering.nonzero().squeeze(1)
            smaller = project(state.best[rows], state.inputs[rows], self.norm, now.eps[rows])
            begun = self._begin(query, state, rows, smaller)
            moved = {n: getattr(state, n).index_copy(0, rows, v) for n, v in begun.items()}
            state = replace(state, **moved)
        point = self._move(state, now.eps)
        loss = self.goal.loss(LOSSES[self.loss], state.labels, state.targets)
        # The gradient after a run's last step leads nowhere.
        seen = self._gradient(query, point, loss, ~now.ends)
        better = seen.losses > state.best_loss
        after = replace(
            state,
            step=state.step + 1,
            point=point,
            previous=state.point,
            gradient=seen.gradient,
            best=with_rows(state.best, better, point),
            best_gradient=with_rows(state.best_gradient, better, seen.gradient),
            best_loss=torch.where(better, seen.losses, state.best_loss),
            last_loss=seen.losses,
            increases=state.increases + (seen.losses > state.last_loss),
            candidate=point,
            margin=self._margin(seen, state.labels, now.eps),
        )
        if not bool((now.interval > 0).any()):
            return after
        if self.norm == "L1":
            return self._adapt_sparsity(after, now.interval > 0, now.eps)
        return _halve_where_stuck(after, now.interval > 0, now.interval)

    def _move(self, state: APGDState, eps: Tensor) -> Tensor:
        columns = (state.point, state.previous, state.gradient, state.inputs)
        momentum = torch.where(state.step > 0, _MOMENTUM, 1.0)
        by_slot = (state.step_size, state.sparsity, momentum, eps)
        (moved,) = by_blocks(self._moved, *columns, *by_slot)
        return moved

    def _moved(
        self,
        point: Tensor,
        previous: Tensor,
        gradient: Tensor,
        x: Tensor,
        step_size: Tensor,
        sparsity: Tensor,
        momentum: Tensor,
        eps: Tensor,
    ) -> tuple[Tensor]:
        """The next points (B, C, H, W) in the ball of radius ``eps``, (B,), around ``x``."""
        size = expand(step_size, point)
        if self.norm == "L1":
            return (project(point + size * _sparse_step(gradient, sparsity), x, "L1", eps),)
        direction = gradient.sign() if self.norm == "Linf" else unit(gradient, "L2")
        ahead = project(point + direction.mul_(size), x, self.norm, eps)
        weight = expand(momentum, point)
        blended = ahead.sub_(point).mul_(weight).add_(point)
        blended += (point - previous).mul_(1 - weight)
        return (project(blended, x, self.norm, eps),)

    def _adapt_sparsity(self, state: APGDState, due: Tensor, eps: Tensor) -> APGDState:
        """L1: fewer coordinates a step as the best point gets sparser, else a shorter step."""
        changed = _count_changed(state.best, state.inputs)
        sparser = changed / state.nonzeros < 0.95
        full = self.scale * eps
        size = torch.where(sparser, full, (state.step_size / 1.5).clamp(full / 10, full))
        restart = expand(due & sparser, state.point)
        return replace(
            state,
            sparsity=torch.where(due, changed / state.best.shape[1:].numel() / 1.5, state.sparsity),
            step_size=torch.where(due, size, state.step_size),
            nonzeros=torch.where(due, changed, state.nonzeros),
            point=torch.where(restart, state.best, state.point),
            gradient=torch.where(restart, state.best_gradient, state.gradient),
        )


class _Schedule(NamedTuple):
    """Radius, checkpoints and phases: by step, (steps,), or at the steps of slots, (B,)."""

    eps: Tensor
    interval: Tensor
    """Steps that the checkpoint after this step closes; 0: no checkpoint"""
    begins: Tensor
    """bool: a phase begins with this step; only L1 has more than one"""
    ends: Tensor

    @classmethod
    def of(cls, steps: int, threat_model: ThreatModel, shrinking_eps: bool) -> _Schedule:
        # Of few steps, the last one at least is taken in the ball itself.
        early = min(math.ceil(0.3 * steps), (steps - 1) // 2) if shrinking_eps else 0
        counts = torch.tensor([early, early, steps - 2 * early])
        factors = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
        eps = (factors * threat_model.radius).float().repeat_interleave(counts)
        intervals = [_checkpoints(count, threat_model.norm) for count in counts.tolist()]
        ends = torch.zeros(steps, dtype=torch.bool)
        ends[counts.cumsum(0) - 1] = True
        return cls(eps, torch.cat(intervals), ends.roll(1), ends)

    def at(self, step: Tensor) -> _Schedule:
        rows = step.clamp(max=len(self.eps) - 1)
        return _Schedule(*(column.to(step.device)[rows] for column in self))


def _checkpoints(steps: int, norm: Norm) -> Tensor:
    """For each step, the length of the interval that a checkpoint after it closes; 0: none."""
    intervals = torch.zeros(steps)
    interval = max(int((0.04 if norm == "L1" else 0.22) * steps), 1)
    shortest, decrease = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
    at = interval - 1
    while at < steps:
        intervals[at] = interval
        if norm != "L1":
            interval = max(interval - decrease, shortest)
        at += interval
    return intervals


def _count_changed(points: Tensor, inputs: Tensor) -> Tensor:
    return (points != inputs).flatten(1).sum(dim=1).to(points.dtype)


def _halve_where_stuck(state: APGDState, due: Tensor, intervals: Tensor) -> APGDState:
    """Conditions 1 and 2 of the paper: halve the step and return to the best point."""
    oscillates = state.increases <= intervals * _RHO
    stagnates = ~state.reduced & (state.checked_loss >= state.best_loss)
    stuck = oscillates | stagnates
    halve = due & stuck
    return replace(
        state,
        step_size=torch.where(halve, state.step_size / 2, state.step_size),
        point=with_rows(state.point, halve, state.best),
        gradient=with_rows(state.gradient, halve, state.best_gradient),
        reduced=torch.where(due, stuck, state.reduced),
        checked_loss=torch.where(due, state.best_loss, state.checked_loss),
        increases=torch.where(due, 0.0, state.increases),
    )


def _sparse_step(gradient: Tensor, sparsity: Tensor) -> Tensor:
    """L1: signs of the largest coordinates, scaled to norm 1; ``sparsity`` (B,) is their share."""
    flat = gradient.flatten(1).abs()
    dimensions = flat.shape[1]
    first = ((1 - sparsity) * dimensions).clamp(0, dimensions - 1).long()
    threshold = flat.sort(dim=1).values.gather(1, first[:, None])
    signs = gradient.sign() * (gradient.abs() >= expand(threshold.squeeze(1), gradient))
    return signs / (expand(norm_of(signs, "L1"), signs) + 1e-10)
