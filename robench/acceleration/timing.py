"""What measurements of speed share: batches of a wanted size, and waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["threads_of", "tiled"]


def tiled(tensor: Tensor, count: int) -> Tensor:
    """The first ``count`` rows of as many copies as it takes: (N, …) → (count, …)."""
    repeats = -(-count // len(tensor))
    return tensor.repeat(repeats, *([1] * (tensor.dim() - 1)))[:count]


@contextmanager
def threads_of(workers: int) -> Iterator[None]:
    """As many threads as each of so many workers has.

    What is timed before the fork is timed as the fork will run it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if workers > 1 else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
