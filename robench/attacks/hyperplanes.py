"""Projection of a point onto a hyperplane inside the pixel box, in each norm.

For a point t in [0, 1]^d and a hyperplane ⟨w, z⟩ = b, find the smallest d (in the norm) with
⟨w, t + d⟩ = b and t + d in the box; where the hyperplane does not meet the box, go as far as the
box allows (Croce & Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
attack", ICML 2020, section 2 and appendix).

Moving coordinate i towards the plane gains |wᵢ| a unit, up to capᵢ, the room to the box. Linf and
L2 fill all coordinates at once up to a common level ρ: dᵢ = min(ρ, capᵢ) or min(ρ·|wᵢ|, capᵢ). The
gain is concave and piecewise linear in ρ, so Newton's method from below ends at the exact level
after finitely many steps, without sorting. L1 fills the largest |wᵢ| first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robench.threat_models import Norm

_FLAT = 1e-8  # weights below this are treated as zero, as in the reference
_HIGH = 1e30  # a level above every cap


def project_onto_hyperplane(points: Tensor, w: Tensor, b: Tensor, norm: Norm) -> Tensor:
    """The shortest step from each point to its hyperplane.

    Args:
        points: float (N, d) in [0, 1].
        w: float (N, d), the planes' normals.
        b: float (N,), the planes' offsets.
        norm: what "shortest" is measured in.

    Returns:
        (N, d): steps with ``points + step`` in [0, 1].
    """
    gap = b - (w * points).sum(dim=1)
    towards = torch.where(gap >= 0, 1.0, -1.0).to(w.dtype)[:, None] * w
    size = towards.abs()
    # Masks as numbers: torch multiplies several times faster than it selects.
    cap = (points - _positive(towards)).abs() * _positive(size - _FLAT)
    need = gap.abs()
    if norm == "L1":
        return towards.sign() * _fill_largest_first(size, cap, need)
    slope = size if norm == "Linf" else size.square()
    ratio = torch.ones_like(size) if norm == "Linf" else size
    level = _water_level(slope, cap / ratio.clamp_min(1e-30), need)
    wanted = level[:, None] * ratio
    return towards.sign() * torch.minimum(wanted, cap)


def _positive(values: Tensor) -> Tensor:
    """1 where positive, else 0."""
    return values.sign().relu_()


def _water_level(slope: Tensor, full: Tensor, need: Tensor) -> Tensor:
    """The smallest ρ with Σᵢ slopeᵢ·min(ρ, fullᵢ) ≥ need, :data:`_HIGH` where none reaches it."""
    most = (slope * full).sum(dim=1)
    reachable = most > need
    level = torch.zeros_like(need)
    open_slope = (slope * _positive(full)).sum(dim=1)
    # Rows that are there stay as they are: their rounding must not depend on the other rows.
    active = reachable
    for _ in range(slope.shape[1]):
        gained = (slope * torch.minimum(level[:, None], full)).sum(dim=1)
        advance = (need - gained).clamp_min(0) / open_slope.clamp_min(1e-30)
        raised = torch.where(active, level + advance, level)
        active = active & (raised > level)
        level = raised
        next_slope = (slope * _positive(full - level[:, None])).sum(dim=1)
        # Where no coordinate filled up on the way the level is exact.
        active = active & (next_slope != open_slope)
        if not bool(active.any()):
            break
        open_slope = torch.where(next_slope > 0, next_slope, open_slope)
    # Not infinite, which would make flat coordinates NaN.
    return torch.where(reachable, level, _HIGH)


def _fill_largest_first(size: Tensor, cap: Tensor, need: Tensor) -> Tensor:
    """Amounts that gain ``need`` with the least sum: full at the largest sizes, the last in part."""
    ordered, order = size.sort(dim=1, descending=True)
    room = cap.gather(1, order)
    gain = ordered * room
    before = gain.cumsum(dim=1) - gain
    lacking = (need[:, None] - before).clamp_min(0)
    filled = torch.minimum(room, lacking / ordered.clamp_min(1e-30))
    return torch.zeros_like(size).scatter_(1, order, filled)
