"""What the Square attack proposes: windows of the image, and what is written into them.

For Linf patches of the input set to plus or minus ε (Andriushchenko et al., ECCV 2020, algorithm 2
and section 3.4); for L2 and L1 a fixed budget of perturbation that moves about (algorithm 3 and
equation (2), with the generalisation to L1 of Croce & Hein, ICML 2021). As in fra31/auto-attack
(``square.py``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.base import take
from robench.geometry import by_blocks, expand, norm_of, project, unit
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

    def by_size(self) -> Iterator[tuple[int, Tensor, Self]]:
        """For each side of windows: the proposals that have it, int64 (P′,), and they alone."""
        sides = sorted(set(self.size.tolist()))
        for side in sides:
            here = (self.size == side).nonzero().squeeze(1)
            yield side, here, self if len(sides) == 1 else take(self, here)


def _places(top: Tensor, left: Tensor, side: int, width: int) -> Tensor:
    """Of windows of images so wide, the pixels of a channel by number: int64 (P, 1, side²)."""
    offsets = torch.arange(side, device=top.device)
    inside = (offsets[:, None] * width + offsets).flatten()
    return (top * width + left)[:, None, None].add(inside)


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

    def points(
        self,
        best: Tensor,
        inputs: Tensor,
        threat_model: ThreatModel,
        rows: Tensor,
        compared: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The current points of ``rows``, int64 (P,), with the patch at ±ε around the clean inputs.

        (P, C, H, W), and bool (P,): whether that changes them; not ``compared``, true everywhere.
        ``best`` and ``inputs`` are (B, C, H, W).
        """
        proposed = best.index_select(0, rows)
        changed = torch.ones_like(rows, dtype=torch.bool)
        # Values by their number among those of all images: torch is slow to look up by several.
        new, clean = proposed.view(-1), inputs.reshape(-1)
        channels, height, width = inputs.shape[1:]
        image, channel = inputs[0].numel(), torch.arange(channels, device=rows.device)[:, None]
        for side, here, move in self.by_size():
            places = channel * (height * width) + _places(move.top, move.left, side, width)
            at = (places + (rows[here] * image)[:, None, None]).flatten()
            before = clean.index_select(0, at).view_as(places)
            painted = (
                before.add_(threat_model.radius * move.signs[:, :, None]).clamp_(0, 1).flatten()
            )
            at = places.add_((here * image)[:, None, None]).flatten()
            if compared:
                other = painted != new.index_select(0, at)
                changed[here] = other.view(len(here), -1).any(dim=1)
            new.index_copy_(0, at, painted)
        return proposed, changed


def _power(threat_model: ThreatModel) -> int:
    return 2 if threat_model.norm == "L2" else 1


def _size(delta: Tensor, power: int) -> Tensor:
    """The norm within each channel: (B, C, h, w) → (B, C, 1, 1)."""
    powers = delta.square() if power == 2 else delta.abs()
    return powers.sum(dim=(-2, -1), keepdim=True).pow(1 / power)


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

    def points(
        self,
        best: Tensor,
        inputs: Tensor,
        threat_model: ThreatModel,
        rows: Tensor,
        compared: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The current points of ``rows``, moved inside the ball; as those of :class:`Patches`."""
        proposed = best.new_empty(len(rows), *best.shape[1:])
        changed = torch.zeros_like(rows, dtype=torch.bool)
        for side, here, move in self.by_size():
            moved, at = partial(_move_mass, threat_model, side, compared), rows[here]
            columns = (best.index_select(0, at), inputs.index_select(0, at))
            points, others = by_blocks(moved, *columns, *vars(move).values())
            if len(here) == len(rows):
                return points, others
            proposed[here], changed[here] = points, others
        return proposed, changed


def _rooms(height: int, width: int) -> tuple[int, int]:
    """In how many rows, and in how many columns, the smallest window may begin."""
    smallest = min(Moves.smallest, height, width)
    return max(height - smallest, 1), max(width - smallest, 1)


def _move_mass(
    threat_model: ThreatModel,
    side: int,
    compared: bool,
    best: Tensor,
    inputs: Tensor,
    *columns: Tensor,
) -> tuple[Tensor, Tensor]:
    """Empty one window of the perturbation and spend its mass, and what is left, on another.

    The windows of the moves, whose fields are the ``columns``, one for each of the points ``best``
    (B, C, H, W) around the clean ``inputs``, are all of one ``side`` in pixels. Returns the new
    points, and bool (B,): whether they are others.
    """
    move = Moves(*columns)
    channels = best.shape[1]
    power, eps = _power(threat_model), threat_model.radius
    delta = best - inputs
    in_image = expand(norm_of(delta, threat_model.norm), delta)
    unspent = (eps**power - in_image**power).clamp_min(0)

    width = best.shape[3]
    filled = _places(move.top, move.left, side, width).expand(-1, channels, -1)
    emptied = _places(move.emptied_top, move.emptied_left, side, width).expand(-1, channels, -1)
    pixels, windows = delta.flatten(2), torch.zeros_like(delta)
    old = pixels.gather(2, filled)
    windows.flatten(2).scatter_(2, filled, old).scatter_(2, emptied, pixels.gather(2, emptied))
    old = old.view(len(best), channels, side, side)
    in_windows = _size(windows, power)
    if power == 2:
        mass = (unspent / channels + in_windows**2).sqrt()
    else:
        mass = (unspent / channels + in_windows) * channels

    new = _signed_windows(side, power, move.turned, move.signs) + old / (_TINY + _size(old, power))
    new = new / (_TINY + _size(new, power)) * mass
    pixels.scatter_(2, emptied, 0.0).scatter_(2, filled, new.flatten(2))
    if power == 2:
        length = expand(norm_of(delta, "L2"), delta)
        moved = delta.div_(length + _TINY).mul_(eps).add_(inputs).clamp_(0, 1)
    else:
        moved = project(delta.add_(inputs), inputs, "L1", eps * _INSIDE)
    changed = torch.ones_like(move.turned)
    return moved, (moved != best).flatten(1).any(dim=1) if compared else changed
