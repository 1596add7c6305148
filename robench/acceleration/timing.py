"""How fast passes through a model are, and how many inputs at a time fit and pay."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import LOSSES, Loss
from robench.devices import is_out_of_memory, synchronise, total_memory

Kind = Literal["logits", "gradient"]
"""Forward passes, or forward and backward passes"""

_LONG_CALL = 0.12
"""Seconds of one call that has seen enough of the machine, and that no larger batch would speed up"""
_TIMING_SECONDS = 0.015
_TURNS = 2
_BATCHES = {"cpu": (256, 512, 1024), "cuda": (512, 1024, 2048), "mps": (256, 512)}
"""Sizes that are tried, by device; the first is the default, larger ones for small networks"""
_COMFORTABLE = 64 * 2**20
"""Bytes below which a larger batch costs nothing but saves overhead"""
_SHARE = 0.25
"""Of the memory; the rest is for temporaries, the attack's state, and everybody else"""
_UNKNOWN = 4 * 2**30
_LONGEST_CALL = 0.5
"""Seconds; a guess from a few inputs is too low for networks that are fast in larger batches"""
_AS_FAST = 0.9
"""Share of the best rate that a larger batch must reach: it saves bookkeeping, and times vary"""


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

    Points (N, C, H, W) and labels (N,) are repeated or cut to ``count``.
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
            if turn == 0 or count < _LONG_CALL * best[index]:
                best[index] = max(best[index], measured(model, kind, points, labels, count)[0])
    return best


def fitting_batch(model: nn.Module, inputs: Tensor, at_most: int | None = None) -> int:
    """The largest size, a power of two or ``at_most``, whose gradients fit into the memory.

    On a CPU there is no error to wait for: a process that asks for too much is killed.

    ``at_most`` is the size that is wanted; None: the device's default. Two of the inputs (N, C, H, W)
    are used.
    """
    sizes = _BATCHES.get(inputs.device.type, (256,))
    limit = _SHARE * (total_memory(inputs.device) or _UNKNOWN)
    needed = bytes_per_input(model, inputs)
    comfortable = [size for size in sizes if 0 < size * needed <= _COMFORTABLE]
    size = at_most or max(sizes[:1] + tuple(comfortable))
    while size > 1 and size * needed > limit:
        size //= 2
    return size


def best_batch(
    search: SearchModel,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    start: int,
    workers: int,
    rate: float,
) -> int:
    """The batch of each of some workers: a larger one than ``start`` while it pays and fits.

    What surrounds a pass costs the same for any size.

    Args:
        search: what is timed, on inputs (N, C, H, W) with labels (N,).
        model: the original, whose memory counts; all workers' batches share it.
        rate: a first guess of inputs a second, which spares slow networks a call of ``start``.
    """
    if start > _LONGEST_CALL * rate:
        return start
    best, seconds = measured(search, "gradient", inputs, labels, start)
    size = start
    for larger in _BATCHES.get(inputs.device.type, ()):
        if larger <= size or seconds > _LONG_CALL:
            continue
        together = larger * workers
        if together > fitting_batch(model, inputs, at_most=together):
            break
        rate, seconds = measured(search, "gradient", inputs, labels, larger)
        if rate < _AS_FAST * best:
            break
        best, size = max(rate, best), larger
    return size


def bytes_per_input(model: nn.Module, inputs: Tensor) -> int:
    """What autograd keeps for each input between forward and backward; 0 if it cannot be told."""
    if len(inputs) < 2:
        inputs = torch.cat((inputs, inputs))
    try:
        # Parameters are kept too, but not for each input.
        return max(0, _saved(model, inputs[:2]) - _saved(model, inputs[:1]))
    except Exception:
        return 0  # what the model has to say to its inputs is the search's business


def _saved(model: nn.Module, inputs: Tensor) -> int:
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(inputs.detach().clone().requires_grad_())
    del output
    return sum(kept.values())
