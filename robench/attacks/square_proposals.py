"""What the Square attack proposes: windows of the image, and what is written into them.

For Linf patches of the input set to plus or minus ε (Andriushchenko et al., ECCV 2020, algorithm 2
and section 3.4); for L2 and L1 a fixed budget of perturbation that moves about (algorithm 3 and
equation (2), with the generalisation to L1 of Croce & Hein, ICML 2021). As in fra31/auto-attack
(``square.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.base import take
from robench.geometry import expand, norm_of, project, unit
from robench.threat_models import ThreatModel

_TINY = 1e-12
_INSIDE = 1 - 1e-6  # L1 projections aim a little inside the ball


@dataclass
class Proposals:
    """What is tried next: a window, and a sign for each of its channels; one entry a proposal."""

    smallest: ClassVar[int]
    """Side of the smallest window, in pixels"""
    has_centre: ClassVar[bool]
    """Whether windows are of odd sides, as the patterns in them have a centre"""
    top: Tensor
    left: Tensor
    """int64 (P,): of the window to fill"""
    signs: Tensor
    """±1, float32 (P, C)"""
    size: Tensor
    """int64 (P,): the window's side in pixels"""
    identity: Tensor
    """int64 (P,): a number below ``count``, another for every proposal of a size"""


class Patches(Proposals):
    """For Linf: the window is painted at plus or minus ε."""

    smallest = 1
    has_centre = False

    @staticmethod
    def starting_points(inputs: Tensor, threat_model: ThreatModel, keys: Tensor) -> Tensor:
        """Where searches begin, (B, C, H, W) in [0, 1]: vertical stripes of ±ε."""
        channels, _, width = inputs.shape[1:]
        stripes = seeding.signs(keys, (channels, 1, width))
        return (inputs + threat_model.radius * stripes).clamp(0, 1)

    @classmethod
    def draw(cls, keys: Tensor, size: Tensor, shape: Sequence[int]) -> Self:
        """For each key, int64 (P,), a position and a sign for each channel of (C, H, W)."""
        channels, height, width = shape
        draws = seeding.uniform(keys, (2 + channels,))
        # As in the reference, the last position is never drawn.
        top = (draws[:, 0] * (height - size).clamp_min(1)).long()
        left = (draws[:, 1] * (width - size).clamp_min(1)).long()
        positive = draws[:, 2:] >= 0.5
        powers = 2 ** torch.arange(channels, device=keys.device)
        identity = (top * width + left) * 2**channels + (positive * powers).sum(dim=1)
        return cls(top, left, positive.to(torch.float32) * 2 - 1, size, identity)

    @staticmethod
    def count(shape: Sequence[int]) -> int:
        """How many there are of one size, on images (C, H, W): every position with all signs."""
        channels, height, width = shape
        return int(height * width * 2**channels)

    def points(self, best: Tensor, inputs: Tensor, threat_model: ThreatModel) -> Tensor:
        """The current points (P, C, H, W), with the patch at ±ε around the clean inputs."""
        height, width = inputs.shape[2:]
        y = torch.arange(height, device=inputs.device)
        x = torch.arange(width, device=inputs.device)
        in_rows = (y >= self.top[:, None]) & (y < (self.top + self.size)[:, None])
        in_columns = (x >= self.left[:, None]) & (x < (self.left + self.size)[:, None])
        inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
        painted = (inputs + threat_model.radius * self.signs[:, :, None, None]).clamp(0, 1)
        return torch.where(inside, painted, best)


def _power(threat_model: ThreatModel) -> int:
    return 2 if threat_model.norm == "L2" else 1


def _size(delta: Tensor, power: int) -> Tensor:
    """The norm within each channel: (B, C, h, w) → (B, C, 1, 1)."""
    return delta.abs().pow(power).sum(dim=(-2, -1), keepdim=True).pow(1 / power)


def _pyramid(rows: int, columns: int, decay: int) -> Tensor:
    """Concentric rectangles, the m-th of weight (m + 1)^−decay: (rows, columns), largest inside."""
    away_rows = (torch.arange(rows) - rows // 2).abs()
    away_columns = (torch.arange(columns) - columns // 2).abs()
    layers = max(rows, columns) // 2 + 1
    weights = torch.arange(1, layers + 1, dtype=torch.float32) ** -decay
    tails = weights.flip(0).cumsum(0).flip(0)
    return tails[torch.maximum(away_rows[:, None], away_columns[None, :])]


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


def _signed_windows(side: int, power: int, turned: Tensor, signs: Tensor) -> Tensor:
    """Windows (B, C, side, side): transposed where ``turned``, bool (B,), times signs (B, C)."""
    upright = _window(side, power).to(signs.device)
    windows = torch.where(turned[:, None, None, None], upright.T, upright)
    return windows * signs[:, :, None, None]


def _turned_and_signs(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform draws (B, 1 + C) → bool (B,) and ±1 (B, C)."""
    return draws[:, 0] >= 0.5, torch.where(draws[:, 1:] >= 0.5, 1.0, -1.0)


@dataclass
class Moves(Proposals):
    """For L2 and L1: one window is emptied, and its mass spent on another."""

    smallest = 3
    has_centre = True

    emptied_top: Tensor
    emptied_left: Tensor
    turned: Tensor
    """bool (P,): the new pattern is transposed"""

    @staticmethod
    def starting_points(inputs: Tensor, threat_model: ThreatModel, keys: Tensor) -> Tensor:
        """Where searches begin, (B, C, H, W) in [0, 1]: a grid of windows, scaled to the ball."""
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
                room += _signed_windows(side, _power(threat_model), *_turned_and_signs(draws))
        if threat_model.norm == "L2":
            return (inputs + threat_model.radius * unit(delta, "L2")).clamp(0, 1)
        return project(inputs + delta, inputs, "L1", threat_model.radius * _INSIDE)

    @classmethod
    def draw(cls, keys: Tensor, size: Tensor, shape: Sequence[int]) -> Self:
        """For each key, int64 (P,), two positions, an orientation and signs of (C, H, W)."""
        channels, height, width = shape
        draws = seeding.uniform(keys, (5 + channels,))
        room = torch.tensor([height, width, height, width], device=keys.device) - size[:, None]
        # As in the reference, the last position is never drawn.
        places = (draws[:, :4] * room.clamp_min(1)).long()
        turned, signs = _turned_and_signs(draws[:, 4:])
        top, left, emptied_top, emptied_left = places.unbind(dim=1)
        rows, columns = _rooms(height, width)
        window = top * columns + left
        identity = window * (rows * columns) + emptied_top * columns + emptied_left
        for bit in (turned, *(signs > 0).unbind(dim=1)):
            identity = identity * 2 + bit
        return cls(top, left, signs, size, identity, emptied_top, emptied_left, turned)

    @staticmethod
    def count(shape: Sequence[int]) -> int:
        """As for patches: every pair of positions with both orientations and all signs."""
        channels, height, width = shape
        rows, columns = _rooms(height, width)
        return int((rows * columns) ** 2 * 2 ** (1 + channels))

    def points(self, best: Tensor, inputs: Tensor, threat_model: ThreatModel) -> Tensor:
        """The current points (P, C, H, W), moved inside the ball around the clean inputs."""
        proposed = torch.empty_like(best)
        for size in sorted(set(self.size.tolist())):
            here = (self.size == size).nonzero().squeeze(1)
            move = take(self, here)
            proposed[here] = _move_mass(best[here], inputs[here], threat_model, size, move)
        return proposed


def _rooms(height: int, width: int) -> tuple[int, int]:
    """In how many rows, and in how many columns, the smallest window may begin."""
    smallest = min(Moves.smallest, height, width)
    return max(height - smallest, 1), max(width - smallest, 1)


def _move_mass(
    best: Tensor, inputs: Tensor, threat_model: ThreatModel, side: int, move: Moves
) -> Tensor:
    """Empty one window of the perturbation and spend its mass, and what is left, on another.

    The windows of a ``move``, one for each of the points ``best`` (B, C, H, W) around the clean
    ``inputs``, are all of one ``side`` in pixels.
    """
    count, channels = best.shape[:2]
    power, eps = _power(threat_model), threat_model.radius

    offsets = torch.arange(side, device=best.device)
    row = torch.arange(count, device=best.device)[:, None, None, None]
    channel = torch.arange(channels, device=best.device)[None, :, None, None]

    def window_at(first_row: Tensor, first_column: Tensor) -> tuple[Tensor, ...]:
        ys = (first_row[:, None] + offsets)[:, None, :, None]
        xs = (first_column[:, None] + offsets)[:, None, None, :]
        return row, channel, ys, xs

    filled = window_at(move.top, move.left)
    emptied = window_at(move.emptied_top, move.emptied_left)
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
    new = _signed_windows(side, power, move.turned, move.signs) + old / (_TINY + _size(old, power))
    outside[filled] = new / (_TINY + _size(new, power)) * mass
    if power == 2:
        return (inputs + eps * unit(outside, "L2")).clamp(0, 1)
    return project(inputs + outside, inputs, "L1", eps * _INSIDE)
