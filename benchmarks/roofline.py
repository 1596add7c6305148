"""The time that a search's model passes take without any attack around them."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from robench.acceleration.timing import tiled
from robench.attacks.losses import LOSSES, Loss
from robench.devices import synchronise
from robench.evaluation.cascade import Cascade
from robench.evaluation.prepared_model import PreparedModel
from robench.records import StageResult

__all__ = ["bare_passes"]

_SUSTAINED = 1.0
"""Seconds of bare passes that the time of one is taken from"""


def bare_passes(
    inputs: Tensor,
    labels: Tensor,
    clean: PreparedModel,
    cascade: Cascade,
    stages: Sequence[StageResult],
) -> float:
    """Time that the same number of passes takes without any attack: of processors on a CPU, else of
    the clock.

    At the same precision and batch size, by as many workers side by side.
    """
    count = cascade.batch_size
    points, classes = tiled(inputs, count), tiled(labels, count)
    loss = Loss(LOSSES["ce"], classes, classes)
    clock = time.process_time if inputs.device.type == "cpu" else time.perf_counter
    total = 0.0
    for model in clean.models.different():
        searched_on = None if model is clean.models.search else model.description
        ran = [stage for stage in stages if stage.search == searched_on]
        backwards = sum(stage.backwards for stage in ran)
        forwards = sum(stage.forwards for stage in ran) - backwards
        if forwards + backwards == 0:
            continue
        one_forward = _time_a_call(partial(model.logits, points), cascade.workers, clock)
        seconds = forwards * one_forward
        if backwards:  # what attacks by queries run on may have no gradients
            gradient = partial(model.gradient, points, loss)
            seconds += backwards * _time_a_call(gradient, cascade.workers, clock)
        total += seconds / count
    return total


def _time_a_call(call: Callable[[], object], workers: int, clock: Callable[[], float]) -> float:
    """Seconds a call, where so many processes do the same at the same time."""
    if workers == 1:
        return _timed_alone(call, clock)
    context = multiprocessing.get_context("fork")
    seen, ready = context.SimpleQueue(), context.Barrier(workers)

    def child() -> None:
        torch.set_num_threads(1)
        seen.put(_timed_alone(call, clock, ready.wait))

    children = [context.Process(target=child) for _ in range(workers)]
    for process in children:
        process.start()
    means = [seen.get() for _ in children]
    for process in children:
        process.join()
    return statistics.fmean(means)


def _timed_alone(
    call: Callable[[], object],
    clock: Callable[[], float],
    begin: Callable[[], object] = lambda: None,
) -> float:
    """The mean over some seconds: a search is as long, and meets the same interruptions."""
    times: list[float] = []
    call()
    begin()
    while len(times) < 3 or sum(times) < _SUSTAINED:
        started = clock()
        call()
        synchronise()
        times.append(clock() - started)
    return statistics.fmean(times)
