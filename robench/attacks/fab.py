"""Fast Adaptive Boundary attack: walk along the decision boundary towards the clean input.

Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
ICML 2020. Constants are those of fra31/auto-attack (``fab_base.py``). FAB minimises the norm; here
it only has to end up inside the ball, so a search ends as soon as it is there.

Each step projects onto a hyperplane inside the pixel box (section 2 and appendix): for a point t in
[0, 1]^d and a hyperplane ⟨w, z⟩ = b, find the smallest d (in the norm) with ⟨w, t + d⟩ = b and
t + d in the box; where the hyperplane does not meet the box, go as far as the box allows. Moving
coordinate i towards the plane gains |wᵢ| a unit, up to capᵢ, the room to the box. Linf and L2 fill
all coordinates at once up to a common level ρ: dᵢ = min(ρ, capᵢ) or min(ρ·|wᵢ|, capᵢ). The gain is
concave and piecewise linear in ρ, so Newton's method from below ends at the exact level after
finitely many steps, without sorting. L1 fills the largest |wᵢ| first.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robench.attacks.base import Attack, Query, Slots, State, limited
from robench.attacks.losses import LOSSES
from robench.attacks.target_order import nearest_ranks, require_target_order, searches_of
from robench.geometry import DUAL, by_blocks, expand, norm_of, random_noise, unit, with_rows
from robench.threat_models import Norm

_ALPHA_MAX = 0.1  # largest pull towards the clean input
_OVERSHOOT = 1.05  # the paper's η: how far past the hyperplane a step goes
_BACKWARD = 0.9  # the paper's β: after crossing, return to this share of the perturbation
_FLAT = 1e-8  # weights below this are treated as zero, as in the reference
_HIGH = 1e30  # a level above every cap


@dataclass
class FABState(State):
    """FAB's slots."""

    point: Tensor
    border_margin: Tensor = field(kw_only=True)
    """(B,): the smallest margin at the ball's border, by the linear models on the way"""


@dataclass(eq=False, kw_only=True)
class FAB(Attack[FABState]):
    """FAB, untargeted or with one search for each target class.

    Raises:
        AttackError: a parameter that makes no sense.
        UnknownNameError: an order of targets that is not one of these.
    """

    can_target = True
    kind = "boundary"
    state_type = FABState
    name: str = "fab"
    steps: int = limited(100, at_least=1)
    """Iterations, each one gradient and one forward pass"""
    restarts: int = limited(1, at_least=1)
    """Searches for each target; the first starts at the clean input"""
    targets: int = limited(9, at_least=0)
    """Number of target classes, from the most to the least likely on the clean input; 0:
    untargeted, with the gradients of all logits at each step. A target that is given is the only
    one"""
    target_order: str = "logits"
    """``logits``, or ``malt``: the nearest linearised boundaries first"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_target_order(self.target_order)
        # Where a target is given, that is the one.
        self.each_target = self.targets > 0 and not self.goal.towards

    def searches(self, num_classes: int) -> int:
        """One search for each target and restart."""
        return (min(self.targets, num_classes - 1) if self.each_target else 1) * self.restarts

    def most_steps(self) -> int:
        """Iterations."""
        return self.steps

    def search_order(
        self, query: Query, inputs: Tensor, labels: Tensor, clean_logits: Tensor
    ) -> Tensor | None:
        """By ``target_order``."""
        if not (self.each_target and self.target_order == "malt"):
            return None
        ranks = nearest_ranks(query, inputs, labels, clean_logits, self.norm, self.targets)
        return searches_of(ranks, self.targets, self.restarts)

    def start(self, query: Query, slots: Slots) -> FABState:
        """Start at the clean input, restarts at a random point within ε/2."""
        targets = slots.targets(self.restarts) if self.each_target else slots.labels
        point = slots.inputs
        again = slots.search % self.restarts > 0
        if bool(again.any()):
            shape = tuple(point.shape[1:])
            noise = random_noise(slots.keys, shape, self.norm)
            away = point + 0.5 * self.threat_model.radius * unit(noise, self.norm)
            point = torch.where(expand(again, point), away.clamp(0, 1), point)
        state = slots.fresh(targets)
        return FABState(**state, point=point, border_margin=state["margin"])

    def step(self, query: Query, state: FABState) -> FABState:
        """Linearise, project onto the boundary, overshoot, and step back where it was crossed."""
        if self.each_target or self.goal.towards:
            loss = self.goal.loss(LOSSES["logit-difference"], state.labels, state.targets)
            _, difference, normal = query.gradient(state.point, loss)
        else:
            difference, normal = self._nearest_boundary(query, state)
        point, size, steepness = by_blocks(
            self._step_to, state.point, state.inputs, difference, normal
        )
        seen = self.goal.margin(query.logits(point), state.labels)
        beyond = (size - self.threat_model.radius).clamp_min(0)
        at_border = seen.clamp_min(0) + beyond * steepness
        inside = size <= self.threat_model.radius
        candidate = with_rows(state.candidate, inside, point)
        crossed = (seen < 0).nonzero().squeeze(1)
        clean = state.inputs[crossed]
        point[crossed] = clean + (point[crossed] - clean) * _BACKWARD
        return replace(
            state,
            step=state.step + 1,
            candidate=candidate,
            margin=torch.where(inside, seen, torch.inf),
            point=point,
            border_margin=torch.minimum(state.border_margin, at_border),
        )

    def _step_to(
        self, point: Tensor, inputs: Tensor, difference: Tensor, normal: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next points (B, C, H, W); (B,) how far they are from the inputs, and the slopes."""
        ahead = self._towards_boundary(
            point.flatten(1), inputs.flatten(1), difference, normal.flatten(1)
        ).view_as(point)
        return ahead, norm_of(ahead - inputs, self.norm), norm_of(normal, DUAL[self.norm])

    def _towards_boundary(
        self, point: Tensor, clean: Tensor, difference: Tensor, w: Tensor
    ) -> Tensor:
        """One step of the paper's equation (10), from both the point and the clean input."""
        b = (w * point).sum(dim=1) - difference
        both = project_onto_hyperplane(torch.stack((point, clean)), w, b, self.norm)
        from_point, from_clean = both[0], both[1]
        sizes = norm_of(both.flatten(0, 1), self.norm).clamp_min(1e-8).view(2, -1)
        alpha = (sizes[0] / sizes.sum(dim=0)).clamp(max=_ALPHA_MAX)[:, None]
        ahead = from_point.mul_(_OVERSHOOT).add_(point).mul_(1 - alpha)
        return ahead.add(from_clean.mul_(_OVERSHOOT).add_(clean).mul_(alpha)).clamp_(0, 1)

    def _nearest_boundary(self, query: Query, state: FABState) -> tuple[Tensor, Tensor]:
        """The class whose linearised boundary is nearest, as the dual norm of the slope tells."""
        logits, slopes = query.jacobian(state.point)
        label = state.labels[:, None]
        differences = logits - logits.gather(1, label)
        own = label.view(-1, *([1] * (slopes.dim() - 1))).expand_as(slopes[:, :1])
        slopes = slopes - slopes.gather(1, own)
        count, classes = differences.shape
        steepness = norm_of(slopes.flatten(0, 1), DUAL[self.norm]).view(count, classes)
        distance = differences.abs() / (steepness + 1e-12)
        nearest = distance.scatter(1, label, torch.inf).argmin(dim=1)
        rows = torch.arange(count, device=nearest.device)
        return differences[rows, nearest], slopes[rows, nearest]


def project_onto_hyperplane(points: Tensor, w: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The shortest step from each point to its hyperplane.

    Args:
        points: float (N, d) in [0, 1], or (M, N, d), of which each plane has M.
        w: float (N, d), the planes' normals.
        b: float (N,), the planes' offsets.
        norm: what "shortest" is measured in.

    Returns:
        Of the points' shape: steps with ``points + step`` in [0, 1].
    """
    gap = b - (w * points).sum(dim=-1)
    towards = torch.where(gap >= 0, 1.0, -1.0).to(w.dtype)[..., None] * w
    size = w.abs()
    cap = (points - _above(towards, 0.0)).abs_().mul_(_above(size, _FLAT))
    need = gap.abs()
    if norm == "L1":
        return towards.sign() * _fill_largest_first(size, cap, need)
    if norm == "Linf":
        wanted = _water_level(size, cap, need)[..., None]
    else:
        wanted = _water_level(size.square(), cap / size.clamp_min(1e-30), need)[..., None] * size
    return towards.sign_().mul_(torch.minimum(wanted, cap))


def _above(values: Tensor, limit: float | Tensor) -> Tensor:
    """1 where greater, else 0: as numbers, for torch multiplies several times faster than it selects."""
    return torch.gt(values, limit, out=torch.empty_like(values))


def _water_level(slope: Tensor, full: Tensor, need: Tensor) -> Tensor:
    """The smallest ρ with Σᵢ slopeᵢ·min(ρ, fullᵢ) ≥ need, :data:`_HIGH` where none reaches it.

    Slopes (N, d); full and need (…, N, d) and (…, N).
    """
    most = (slope * full).sum(dim=-1)
    reachable = most > need
    level = gained = torch.zeros_like(need)
    open_slope = _above(full, 0.0).mul_(slope).sum(dim=-1)
    # Rows that are there stay as they are: their rounding must not depend on the other rows.
    active = reachable
    for _ in range(slope.shape[-1]):
        advance = (need - gained).clamp_min(0) / open_slope.clamp_min(1e-30)
        raised = torch.where(active, level + advance, level)
        active = active & (raised > level)
        level = raised
        next_slope = _above(full, level[..., None]).mul_(slope).sum(dim=-1)
        # Where no coordinate filled up on the way the level is exact.
        active = active & (next_slope != open_slope)
        if not bool(active.any()):
            break
        open_slope = torch.where(next_slope > 0, next_slope, open_slope)
        gained = torch.minimum(level[..., None], full).mul_(slope).sum(dim=-1)
    # Not infinite, which would make flat coordinates NaN.
    return torch.where(reachable, level, _HIGH)


def _fill_largest_first(size: Tensor, cap: Tensor, need: Tensor) -> Tensor:
    """Amounts that gain ``need`` with the least sum: full at the largest sizes, the last in part."""
    ordered, order = size.expand_as(cap).sort(dim=-1, descending=True)
    room = cap.gather(-1, order)
    gain = ordered * room
    before = gain.cumsum(dim=-1) - gain
    lacking = (need[..., None] - before).clamp_min(0)
    filled = torch.minimum(room, lacking / ordered.clamp_min(1e-30))
    return torch.zeros_like(cap).scatter_(-1, order, filled)
