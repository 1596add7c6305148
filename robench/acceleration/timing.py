"""How fast passes through a model are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import LOSSES, Loss
from robench.devices import is_out_of_memory, synchronise

Kind = Literal["logits", "gradient"]
"""Forward passes, or forward and backward passes"""

LONG_CALL = 0.12
"""Seconds of one call that has seen enough of the machine, and that no larger batch would speed up"""
_TIMING_SECONDS = 0.015
_TURNS = 2


def tiled(tensor: Tensor, count: int) -> Tensor:
    """The first ``count`` rows of as many copies as it takes: (N, …) → (count, …)."""
    return tensor[torch.arange(count, device=tensor.device) % len(tensor)]


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


def seconds_a_call(call: Callable[[], object]) -> float:
    """The shortest of some calls after one to warm up; the device is waited for."""
    call()
    synchronise()
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < _TIMING_SECONDS or not times:
        before = time.perf_counter()
        call()
        synchronise()
        times.append(time.perf_counter() - before)
    return min(times)


def measured(
    model: SearchModel, kind: Kind, points: Tensor, labels: Tensor, count: int
) -> tuple[float, float]:
    """Inputs a second and seconds a call of ``count`` inputs; rate 0 where memory is too short.

    Args:
        model: what is timed.
        kind: which of its passes.
        points: (N, C, H, W), repeated or cut to ``count``.
        labels: int64 (N,).
        count: inputs of one call.
    """
    points, labels = tiled(points, count), tiled(labels, count)
    loss = Loss(LOSSES["ce"], labels, labels)
    call: Callable[[], object] = (
        (lambda: model.logits(points))
        if kind == "logits"
        else (lambda: model.gradient(points, loss))
    )
    try:
        seconds = seconds_a_call(call)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return 0.0, float("inf")
        raise
    return count / seconds, seconds


def rates(
    models: Sequence[SearchModel], kind: Kind, points: Tensor, labels: Tensor, count: int
) -> list[float]:
    """Inputs a second of each model; arguments as of :func:`measured`.

    In turns: whatever else the machine does for a moment must not hit one of them alone.
    """
    best = [0.0] * len(models)
    for turn in range(_TURNS):
        for index, model in enumerate(models):
            if turn == 0 or count < LONG_CALL * best[index]:
                best[index] = max(best[index], measured(model, kind, points, labels, count)[0])
    return best
