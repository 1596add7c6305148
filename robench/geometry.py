"""Norms, balls and the pixel box: tensors in, tensors out.

The norm is data here, and nowhere else does code branch on it without need. Images are float
(N, C, H, W) in [0, 1]; perturbations have the same shape; per-sample scalars are (N,).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from robench import seeding
from robench.threat_models import Norm

_TINY = 1e-12
_BLOCK = 2**17
"""Values of a tensor that a processor's cache has room for, among some others"""

DUAL: dict[Norm, Norm] = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
"""The norm of a gradient that says how fast a function can change along steps of a norm."""


def expand(values: Tensor, like: Tensor) -> Tensor:
    """Per-sample scalars (N,) → (N, 1, …, 1), to broadcast against ``like`` (N, …)."""
    return values.view(-1, *([1] * (like.dim() - 1)))


def by_blocks(function: Callable[..., tuple[Tensor, ...]], *columns: Tensor) -> tuple[Tensor, ...]:
    """``function`` of columns (N, …), a few rows at a time: what it gives, (N, …) each.

    What lies in a processor's cache is there for the next operation; a whole batch does not. The
    function takes rows for themselves, so the result is the same. Elsewhere than on a CPU the rows
    come together.
    """
    count = len(columns[0])
    rows = max(1, _BLOCK // max(columns[0][:1].numel(), 1))
    if columns[0].device.type != "cpu" or count <= rows:
        return function(*columns)
    results: tuple[Tensor, ...] = ()
    for start in range(0, count, rows):
        done = function(*(column[start : start + rows] for column in columns))
        if not results:
            results = tuple(part.new_empty(count, *part.shape[1:]) for part in done)
        for result, part in zip(results, done, strict=True):
            result[start : start + rows] = part
    return results


def with_rows(values: Tensor, chosen: Tensor, others: Tensor) -> Tensor:
    """``values`` (N, …), ``others`` where ``chosen``, bool (N,); the same tensor where none is."""
    rows = chosen.nonzero().squeeze(1)
    return values.index_copy(0, rows, others.index_select(0, rows)) if len(rows) else values


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each perturbation: (N, …) → (N,), in the units of ``delta``."""
    flat = delta.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(dim=1)
    if norm == "L2":
        return flat.square().sum(dim=1).sqrt()
    return flat.abs().sum(dim=1)


def norm_tolerance(norm: Norm, dimensions: int) -> float:
    """How far rounding alone can carry a float32 image outside its ball, in pixel units.

    Storing ``x + δ`` in [0, 1] costs up to 2⁻²⁵ a coordinate, computing it about as much again;
    four units of 2⁻²⁴ a coordinate are allowed, combined as the norm combines them.
    """
    rounding = 4 * 2.0**-24
    return rounding * {"Linf": 1.0, "L2": math.sqrt(dimensions), "L1": float(dimensions)}[norm]


def unit(delta: Tensor, norm: Norm) -> Tensor:
    """``delta`` (N, …) scaled to norm 1 for each sample; zeros stay zeros."""
    return delta / (expand(norm_of(delta, norm), delta) + _TINY)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of norm 1 along which a linear function grows most: (N, …) → (N, …).

    Linf: the sign. L2: the gradient normalised. L1: the largest coordinate alone.
    """
    if norm == "Linf":
        return gradient.sign()
    if norm == "L2":
        return unit(gradient, "L2")
    flat = gradient.flatten(1)
    top = flat.abs().argmax(dim=1, keepdim=True)
    direction = torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign())
    return direction.view_as(gradient)


def project(points: Tensor, inputs: Tensor, norm: Norm, eps: float | Tensor) -> Tensor:
    """Project onto the ball of radius ``eps`` around ``inputs`` and onto the box [0, 1].

    Linf and L1 give the Euclidean projection onto the intersection of ball and box; L2 projects
    onto the ball and then clips, which stays inside the ball, as the field's attacks do.

    Args:
        points, inputs: (N, C, H, W), the latter in [0, 1].
        eps: radius in [0, 1] pixel units, one or (N,).

    Returns:
        (N, C, H, W) in [0, 1], within ``eps`` of ``inputs`` up to rounding.
    """
    radius = expand(torch.as_tensor(eps, dtype=inputs.dtype, device=inputs.device), inputs)
    if norm == "Linf":
        return torch.minimum(torch.maximum(points, inputs - radius), inputs + radius).clamp_(0, 1)
    delta = points - inputs
    if norm == "L2":
        size = expand(norm_of(delta, "L2"), delta)
        return (inputs + delta * torch.clamp(radius / (size + _TINY), max=1.0)).clamp(0, 1)
    return inputs + _l1_box_projection(delta, inputs, radius)


def _l1_box_projection(delta: Tensor, inputs: Tensor, radius: Tensor) -> Tensor:
    """Euclidean projection of ``delta`` onto {‖δ‖₁ ≤ r, 0 ≤ x + δ ≤ 1}.

    The solution is δᵢ = sign(dᵢ)·clip(|dᵢ| − λ, 0, capᵢ), capᵢ being the room to the box, with the
    smallest λ ≥ 0 for which ‖δ‖₁ ≤ r (Croce & Hein, ICML 2021, section 3). The norm is convex and
    piecewise linear in λ up to caps; its breakpoints are sorted and the crossing interpolated.
    """
    d, x = delta.flatten(1), inputs.flatten(1)
    size = d.abs()
    cap = torch.minimum(torch.where(d > 0, 1 - x, x), size).clamp_min(0)
    # Going down from λ = max: coordinate i starts to grow at λ = |dᵢ|, stops at |dᵢ| − capᵢ.
    events = torch.cat((size, size - cap), dim=1)
    change = torch.cat((torch.ones_like(size), -torch.ones_like(size)), dim=1)
    events, order = events.sort(dim=1, descending=True)
    slope = change.gather(1, order).cumsum(dim=1)
    drops = events[:, :-1] - events[:, 1:]
    mass = torch.cat((torch.zeros_like(d[:, :1]), (slope[:, :-1] * drops).cumsum(dim=1)), dim=1)
    r = radius.flatten(1).expand(d.shape[0], 1)
    # The last event whose mass is still within the radius; from it λ goes down by (r − mass)/slope.
    last = (mass <= r).sum(dim=1, keepdim=True).sub_(1).clamp_min_(0)
    fits = mass[:, -1:] <= r
    remaining = (r - mass.gather(1, last)) / slope.gather(1, last).clamp_min(1.0)
    threshold = torch.where(fits, torch.zeros_like(r), events.gather(1, last) - remaining)
    shrunk = torch.minimum((size - threshold).clamp_min(0), cap)
    return (d.sign() * shrunk).view_as(delta)


def random_point(inputs: Tensor, norm: Norm, eps: float, keys: Tensor) -> Tensor:
    """A random start in the ball of radius ``eps`` around (N, C, H, W), clipped to the box.

    Linf: uniform in the cube, as PGD starts (Madry et al. 2018). L2: uniform in the ball. L1: a
    Gaussian point projected onto the ball, as AutoAttack starts. Drawn by ``keys``, int64 (N,).
    """
    direction = random_noise(keys, tuple(inputs.shape[1:]), norm)
    if norm == "Linf":
        return (inputs + eps * direction).clamp(0, 1)
    if norm == "L1":
        return project(inputs + direction, inputs, "L1", eps)
    drawn = seeding.uniform(seeding.derive(keys, 3), (1,)).flatten()
    # Not as a power: torch rounds those by an element's place in the batch.
    share = (drawn.log() / inputs.shape[1:].numel()).exp()
    return (inputs + eps * expand(share, inputs) * unit(direction, "L2")).clamp(0, 1)


def random_noise(keys: Tensor, shape: tuple[int, ...], norm: Norm) -> Tensor:
    """Noise (N, *shape) from keys, int64 (N,): uniform in [-1, 1] for Linf, else normal."""
    if norm == "Linf":
        return 2 * seeding.uniform(keys, shape) - 1
    return seeding.normal(keys, shape)
