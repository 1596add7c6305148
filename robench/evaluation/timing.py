"""What measurements of speed share: batches of a wanted size, and waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["synchronise", "tiled"]


def tiled(tensor: Tensor, count: int) -> Tensor:
    """The first ``count`` rows of as many copies as it takes: (N, …) → (count, …)."""
    repeats = -(-count // len(tensor))
    return tensor.repeat(repeats, *([1] * (tensor.dim() - 1)))[:count]


def synchronise() -> None:
    """Wait until the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
