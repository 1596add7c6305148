"""What measurements of speed share: batches of a wanted size, and waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["gain", "synchronise", "tiled"]


def tiled(tensor: Tensor, count: int) -> Tensor:
    """The first ``count`` rows of as many copies as it takes: (N, …) → (count, …)."""
    repeats = -(-count // len(tensor))
    return tensor.repeat(repeats, *([1] * (tensor.dim() - 1)))[:count]


def synchronise() -> None:
    """Wait until the device has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def gain(before: Callable[[], object], after: Callable[[], object], seconds: float = 1.0) -> float:
    """How many times faster ``after`` is than ``before``, by their best calls in alternation.

    Side by side, because on a machine that is shared with others the speed of now says little
    about the speed of a minute ago.

    Args:
        before: one call; called once beforehand to warm up, as is ``after``.
        after: one call.
        seconds: how long to measure; at least three calls of each are made.
    """
    calls = (before, after)
    times: tuple[list[float], list[float]] = ([], [])
    for call in calls:
        call()
    started = time.perf_counter()
    while len(times[0]) < 3 or time.perf_counter() - started < seconds:
        for call, seen in zip(calls, times, strict=True):
            synchronise()
            since = time.perf_counter()
            call()
            synchronise()
            seen.append(time.perf_counter() - since)
    return min(times[0]) / min(times[1])
