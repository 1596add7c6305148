"""What a gradient goes through in place of a segment that hides or falsifies it.

Each is fitted to how the segment's ends move within the ball, and scored on movements that it has
not seen: the share of the target's movement that it explains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from robench.errors import AttackError

_LARGEST_FIT = 2**24
"""Values of all movements that a linear map is fitted to"""
_RIDGE = 0.03
SIDES = (1, 3)
"""Of convolutions that are fitted"""


class Guide(Protocol):
    """Something smooth in a segment's place."""

    @property
    def name(self) -> str:
        """As it reads in a record"""
        ...

    def __call__(self, source: Tensor, again: Callable[[Tensor], Tensor] | None) -> Tensor:
        """A tensor of the target's shape whose gradient goes back to ``source``; its value does not
        matter. ``again`` is the segment, where it can be called."""
        ...


def explained(predicted: Tensor, moved: Tensor) -> float:
    """1 − ‖moved − predicted‖² / ‖moved‖², of tensors of one shape."""
    return 1.0 - float((moved - predicted).double().square().sum() / moved.double().square().sum())


@dataclass(frozen=True)
class Identity:
    """The source itself, times what fits best."""

    scale: float
    name: str = "the identity"

    @classmethod
    def fitted(cls, source: Tensor, target: Tensor) -> Identity | None:
        """Of movements; None: the shapes differ."""
        if source.shape != target.shape:
            return None
        size = float(source.double().square().sum())
        scale = float((source.double() * target.double()).sum()) / size if size else 0.0
        return cls(scale)

    def __call__(self, source: Tensor, again: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The source, scaled."""
        return self.scale * source


@dataclass(frozen=True)
class Convolution:
    """A convolution of side 1 or 3, for maps of one height and width."""

    weight: Tensor
    """(C′, C, k, k)"""

    @property
    def name(self) -> str:
        """With its side."""
        return f"a fitted {self.weight.shape[2]}×{self.weight.shape[2]} convolution"

    @classmethod
    def fitted(cls, source: Tensor, target: Tensor, side: int) -> Convolution | None:
        """Of movements (N, C, H, W) and (N, C′, H, W), by least squares; None: they are no such maps."""
        if source.dim() != 4 or target.dim() != 4 or source.shape[2:] != target.shape[2:]:
            return None
        unknowns = source.shape[1] * side * side
        if unknowns > 1024 or min(source.shape[2:]) < side:
            return None
        most = max(1, _LARGEST_FIT // (unknowns * source.shape[2:].numel()))
        rows = functional.unfold(source[:most].float(), side, padding=side // 2)
        rows = rows.transpose(1, 2).flatten(0, 1).double()
        columns = target[:most].flatten(2).transpose(1, 2).flatten(0, 1).double()
        solved = _ridge(rows.T @ rows, rows.T @ columns)
        shape = (target.shape[1], source.shape[1], side, side)
        return cls(solved.T.reshape(shape).float())

    def __call__(self, source: Tensor, again: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(N, C, H, W) → (N, C′, H, W)."""
        weight = self.weight.to(source.dtype)
        return functional.conv2d(source, weight, padding=weight.shape[2] // 2)


@dataclass(frozen=True)
class Linear:
    """A linear map of low rank, whatever the shapes."""

    out: Tensor
    """(D′, n)"""
    into: Tensor
    """(n, D)"""
    shape: torch.Size
    name: str = "a fitted linear map"

    @classmethod
    def fitted(cls, source: Tensor, target: Tensor) -> Linear | None:
        """Of movements (n, …) and (n, …), by ridge regression in its dual form."""
        rows, columns = source.flatten(1).double(), target.flatten(1).double()
        if rows.numel() + columns.numel() > _LARGEST_FIT:
            return None
        solved = _ridge(rows @ rows.T, columns)
        return cls(solved.T.float().contiguous(), rows.float(), target.shape[1:])

    def __call__(self, source: Tensor, again: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(N, …) → (N, …), of the target's shape."""
        inner = source.flatten(1) @ self.into.to(source.dtype).T
        return (inner @ self.out.to(source.dtype).T).view(len(source), *self.shape)


@dataclass(frozen=True)
class Differences:
    """Differences of the segment itself, a pixel at a time, as far as inputs move in the ball.

    For maps (N, C, H, W) of which each pixel decides what is at its own place of the target
    (N, …, H, W), and nothing else.
    """

    step: float
    name: str = "its own differences"

    @classmethod
    def of(
        cls, step: float, source: Tensor, again: Callable[[Tensor], Tensor]
    ) -> Differences | None:
        """None: the segment is none of this kind; ``source`` (N, C, H, W) are some of its inputs."""
        if source.dim() != 4 or source.shape[1] > 16 or not step:
            return None
        height, width = source.shape[2:]
        chosen = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0
        chosen = chosen.to(source.device)
        before, after = again(source), again(source + step * chosen)
        if before.dim() < 4 or before.shape[-2:] != source.shape[2:]:
            return None
        moved = before != after
        return cls(step) if bool(moved.any()) and not bool(moved[..., ~chosen].any()) else None

    def slopes(self, source: Tensor, again: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Of each of C channels, (N, …, H, W): how the target changes with it."""
        found = []
        for channel in range(source.shape[1]):
            shift = torch.zeros_like(source)
            shift[:, channel] = self.step
            found.append((again(source + shift) - again(source - shift)) / (2 * self.step))
        return found

    def __call__(self, source: Tensor, again: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Each pixel times its slope.

        Raises:
            AttackError: the segment cannot be called.
        """
        if again is None:
            raise AttackError("differences need the segment itself")
        return self.along(self.slopes(source.detach(), again), source)

    @staticmethod
    def along(slopes: list[Tensor], movement: Tensor) -> Tensor:
        """Each pixel of a movement (N, C, H, W) times its slope, over all channels."""
        count, _, height, width = movement.shape
        shape = (count, *[1] * (slopes[0].dim() - 3), height, width)
        parts = [slope * movement[:, c].reshape(shape) for c, slope in enumerate(slopes)]
        return torch.stack(parts).sum(dim=0)


def _ridge(square: Tensor, right: Tensor) -> Tensor:
    """(square + λ) ⁻¹ right, λ a share of the mean of the diagonal."""
    size = square.diagonal().mean().clamp_min(1e-30)
    damped = square + _RIDGE * size * torch.eye(
        len(square), dtype=square.dtype, device=square.device
    )
    solved: Tensor = torch.linalg.solve(damped, right)
    return solved
