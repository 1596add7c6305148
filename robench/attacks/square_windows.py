"""Windows of the Square attack for L2 and L1: a fixed budget of perturbation that moves about.

Andriushchenko et al., ECCV 2020, algorithm 3 and equation (2), with the generalisation to L1 of
Croce & Hein, ICML 2021, as in fra31/auto-attack (``square.py``).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from robench import seeding
from robench.geometry import expand, norm_of, project, unit
from robench.threat_models import ThreatModel

__all__ = ["move_mass", "starting_pattern"]

_TINY = 1e-12
_INSIDE = 1 - 1e-6  # L1 projections aim a little inside the ball


def _power(threat_model: ThreatModel) -> int:
    return 2 if threat_model.norm == "L2" else 1


def _size(delta: Tensor, power: int) -> Tensor:
    """The norm within each channel: (B, C, h, w) → (B, C, 1, 1)."""
    return delta.abs().pow(power).sum(dim=(-2, -1), keepdim=True).pow(1 / power)


def _pyramid(rows: int, columns: int, decay: int) -> Tensor:
    """Concentric rectangles, the m-th of weight (m + 1)^−decay: (rows, columns), largest inside."""
    centre_row, centre_column = rows // 2, columns // 2
    layers = max(rows // 2, columns // 2) + 1
    away_rows = (torch.arange(rows) - centre_row).abs()
    away_columns = (torch.arange(columns) - centre_column).abs()
    ring = torch.maximum(away_rows[:, None], away_columns[None, :])
    weights = torch.arange(1, layers + 1, dtype=torch.float32) ** -decay
    tails = weights.flip(0).cumsum(0).flip(0)
    # Cells beyond the last layer belong to none.
    return torch.cat((tails, torch.zeros(max(rows, columns) + 1)))[ring]


@lru_cache(maxsize=128)
def _window(side: int, power: int) -> Tensor:
    """The paper's η: a positive half above a negative half, norm 1: (side, side)."""
    decay = 2 if power == 2 else 4
    halves = []
    for rows, sign in ((side // 2, 1.0), (side - side // 2, -1.0)):
        half = sign * _pyramid(rows, side, decay)
        if rows:
            half = half / half.abs().pow(power).sum().pow(1 / power)
        halves.append(half)
    window = torch.cat(halves)
    return window / window.abs().pow(power).sum().pow(1 / power)


def _signed_windows(side: int, power: int, draws: Tensor) -> Tensor:
    """A window for each sample, upright or transposed, its sign drawn by channel.

    Args:
        side: in pixels.
        power: 2 for L2, 1 for L1.
        draws: (B, 1 + C), uniform in [0, 1).

    Returns:
        (B, C, side, side).
    """
    upright = _window(side, power).to(draws.device)
    turned = draws[:, :1, None, None] >= 0.5
    signs = torch.where(draws[:, 1:, None, None] >= 0.5, 1.0, -1.0)
    return torch.where(turned, upright.T, upright) * signs


def starting_pattern(inputs: Tensor, threat_model: ThreatModel, keys: Tensor) -> Tensor:
    """A grid of windows, scaled to the ball: (B, C, H, W) in [0, 1]."""
    channels, height, width = inputs.shape[1:]
    side = max(height // 5, 1)
    offset = (height - side * 5) // 2
    delta = torch.zeros_like(inputs)
    for i in range(height // side):
        for j in range(width // side):
            top, left = offset + i * side, offset + j * side
            room = delta[:, :, top : top + side, left : left + side]
            if room.shape[2:] != (side, side):  # the grid may reach over the border
                continue
            draws = seeding.uniform(seeding.derive(keys, i * width + j), (1 + channels,))
            room += _signed_windows(side, _power(threat_model), draws)
    if threat_model.norm == "L2":
        return (inputs + threat_model.radius * unit(delta, "L2")).clamp(0, 1)
    return project(inputs + delta, inputs, "L1", threat_model.radius * _INSIDE)


def move_mass(
    best: Tensor, inputs: Tensor, threat_model: ThreatModel, side: int, keys: Tensor
) -> Tensor:
    """Empty one window of the perturbation and spend its mass, and what is left, on another.

    Args:
        best: (B, C, H, W), the current points.
        inputs: (B, C, H, W), the clean inputs.
        threat_model: an L2 or L1 ball.
        side: the windows' side in pixels.
        keys: int64 (B,), one for each proposal.
    """
    count, channels, height, width = best.shape
    power, eps = _power(threat_model), threat_model.radius
    draws = seeding.uniform(keys, (5 + channels,))
    room = torch.tensor([height, width, height, width], device=keys.device) - side
    top, left, top_2, left_2 = (draws[:, :4] * room.clamp_min(1)).long().unbind(dim=1)

    offsets = torch.arange(side, device=keys.device)
    row = torch.arange(count, device=keys.device)[:, None, None, None]
    channel = torch.arange(channels, device=keys.device)[None, :, None, None]

    def window_at(first_row: Tensor, first_column: Tensor) -> tuple[Tensor, ...]:
        ys = (first_row[:, None] + offsets)[:, None, :, None]
        xs = (first_column[:, None] + offsets)[:, None, None, :]
        return row, channel, ys, xs

    filled, emptied = window_at(top, left), window_at(top_2, left_2)
    delta = best - inputs
    outside = delta.clone()
    outside[filled] = 0
    outside[emptied] = 0
    in_windows = _size(delta - outside, power)
    in_image = expand(norm_of(delta, threat_model.norm), delta)
    unspent = (eps**power - in_image**power).clamp_min(0)
    if power == 2:
        mass = (unspent / channels + in_windows**2).sqrt()
    else:
        mass = (unspent / channels + in_windows) * channels

    old = delta[filled]
    new = _signed_windows(side, power, draws[:, 4:]) + old / (_TINY + _size(old, power))
    outside[filled] = new / (_TINY + _size(new, power)) * mass
    if power == 2:
        return (inputs + eps * unit(outside, "L2")).clamp(0, 1)
    return project(inputs + outside, inputs, "L1", eps * _INSIDE)
