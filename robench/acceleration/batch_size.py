"""How many inputs a gradient can take at a time, and how many pay."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from robench.acceleration.search_models import SearchModel
from robench.acceleration.timing import LONG_CALL, measured
from robench.devices import total_memory

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


def fitting_batch(model: nn.Module, inputs: Tensor, at_most: int | None = None) -> int:
    """The largest size, a power of two or ``at_most``, whose gradients fit into the memory.

    On a CPU there is no error to wait for: a process that asks for too much is killed.

    Args:
        model: (N, C, H, W) → logits, on its device.
        inputs: (N, C, H, W) on the same device; two of them are used.
        at_most: the size that is wanted; None: the device's default.
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
        search: what is timed.
        model: the original, whose memory counts.
        inputs: (N, C, H, W), any number of them.
        labels: int64 (N,).
        start: the size to begin with.
        workers: so many batches share the memory.
        rate: a first guess of inputs a second, which spares slow networks a call of ``start``.
    """
    if start > _LONGEST_CALL * rate:
        return start
    best, seconds = measured(search, "gradient", inputs, labels, start)
    size = start
    for larger in _BATCHES.get(inputs.device.type, ()):
        if larger <= size or seconds > LONG_CALL:
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
