"""Fast Adaptive Boundary attack: walk along the decision boundary towards the clean input.

Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020. Constants are those of fra31/auto-attack (``fab_base.py``). FAB minimises the norm; here
it only has to end up inside the ball, so a search ends as soon as it is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robench.attacks.base import AttackKind, Query, Slots, State, fresh, nth_best_class
from robench.attacks.hyperplanes import project_onto_hyperplane
from robench.attacks.losses import LOSSES, Loss, margin
from robench.errors import AttackError
from robench.geometry import expand, norm_of, random_noise, unit
from robench.threat_models import Norm, ThreatModel

_DUAL: dict[Norm, Norm] = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
_ALPHA_MAX = 0.1  # largest pull towards the clean input
_OVERSHOOT = 1.05  # the paper's η: how far past the hyperplane a step goes
_BACKWARD = 0.9  # the paper's β: after crossing, return to this share of the perturbation


@dataclass
class FABState(State):
    """FAB's slots."""

    point: Tensor
    border_margin: Tensor = field(kw_only=True)
    """(B,): the smallest margin at the ball's border, by the linear models on the way"""


class FAB:
    """FAB, untargeted or with one search for each target class.

    Args:
        threat_model: the ball to end up in.
        steps: iterations, each one gradient and one forward pass.
        restarts: searches for each target; the first starts at the clean input.
        targets: number of target classes, from the most to the least likely on the clean input;
            0: untargeted, with the gradients of all logits at each step.

    Raises:
        AttackError: a parameter that makes no sense.
    """

    runs_to_the_end = False
    kind: AttackKind = "boundary"
    state_type = FABState

    def __init__(
        self,
        threat_model: ThreatModel,
        *,
        name: str = "fab",
        steps: int = 100,
        restarts: int = 1,
        targets: int = 9,
    ) -> None:
        if min(steps, restarts) < 1 or targets < 0:
            raise AttackError(f"{name}: steps and restarts must be at least 1, targets at least 0")
        self.name = name
        self.threat_model = threat_model
        self.norm = threat_model.norm
        self.num_steps = steps
        self.restarts = restarts
        self.targets = targets

    def searches(self, num_classes: int) -> int:
        """One search for each target and restart."""
        return max(min(self.targets, num_classes - 1), 1) * self.restarts

    def steps(self) -> int:
        """Iterations."""
        return self.num_steps

    def start(self, query: Query, slots: Slots) -> FABState:
        """Start at the clean input, restarts at a random point within ε/2."""
        targets = slots.labels
        if self.targets:
            targets = nth_best_class(slots.clean_logits, 1 + slots.search // self.restarts)
        point = slots.inputs
        again = slots.search % self.restarts > 0
        if bool(again.any()):
            shape = tuple(point.shape[1:])
            noise = random_noise(slots.keys, shape, self.norm)
            away = point + 0.5 * self.threat_model.radius * unit(noise, self.norm)
            point = torch.where(expand(again, point), away.clamp(0, 1), point)
        state = fresh(slots, targets)
        return FABState(**state, point=point, border_margin=state["margin"])

    def step(self, query: Query, state: FABState) -> FABState:
        """Linearise, project onto the boundary, overshoot, and step back where it was crossed."""
        if self.targets:
            loss = Loss(LOSSES["logit-difference"], state.labels, state.targets)
            _, difference, normal = query.gradient(state.point, loss)
        else:
            difference, normal = self._nearest_boundary(query, state)
        point = self._towards_boundary(state, difference, normal)
        seen = margin(query.logits(point), state.labels)
        size = norm_of(point - state.inputs, self.norm)
        inside = size <= self.threat_model.radius
        steepness = norm_of(normal, _DUAL[self.norm])
        beyond = (size - self.threat_model.radius).clamp_min(0)
        at_border = seen.clamp_min(0) + beyond * steepness
        crossed = expand(seen < 0, point)
        back = state.inputs + (point - state.inputs) * _BACKWARD
        return replace(
            state,
            step=state.step + 1,
            candidate=torch.where(expand(inside, point), point, state.candidate),
            margin=torch.where(inside, seen, torch.inf),
            point=torch.where(crossed, back, point),
            border_margin=torch.minimum(state.border_margin, at_border),
        )

    def _towards_boundary(self, state: FABState, difference: Tensor, normal: Tensor) -> Tensor:
        """One step of the paper's equation (10), from both the point and the clean input."""
        count = len(difference)
        point, clean = state.point.flatten(1), state.inputs.flatten(1)
        w = normal.flatten(1)
        b = (w * point).sum(dim=1) - difference
        both = project_onto_hyperplane(
            torch.cat((point, clean)), torch.cat((w, w)), torch.cat((b, b)), self.norm
        )
        from_point, from_clean = both[:count], both[count:]
        sizes = norm_of(both, self.norm).clamp_min(1e-8)
        alpha = (sizes[:count] / (sizes[:count] + sizes[count:])).clamp(max=_ALPHA_MAX)[:, None]
        ahead = (point + _OVERSHOOT * from_point) * (1 - alpha)
        ahead = ahead + (clean + _OVERSHOOT * from_clean) * alpha
        return ahead.clamp(0, 1).view_as(state.point)

    def _nearest_boundary(self, query: Query, state: FABState) -> tuple[Tensor, Tensor]:
        """The class whose linearised boundary is nearest, as the dual norm of the slope tells."""
        logits, slopes = query.jacobian(state.point)
        label = state.labels[:, None]
        differences = logits - logits.gather(1, label)
        own = label.view(-1, *([1] * (slopes.dim() - 1))).expand_as(slopes[:, :1])
        slopes = slopes - slopes.gather(1, own)
        count, classes = differences.shape
        steepness = norm_of(slopes.flatten(0, 1), _DUAL[self.norm]).view(count, classes)
        distance = differences.abs() / (steepness + 1e-12)
        nearest = distance.scatter(1, label, torch.inf).argmin(dim=1)
        rows = torch.arange(count, device=nearest.device)
        return differences[rows, nearest], slopes[rows, nearest]

    def finished(self, state: FABState) -> Tensor:
        """All iterations taken."""
        return state.step >= self.num_steps
