"""How many inputs a gradient can take at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from robench.devices import total_memory

__all__ = ["BATCHES", "bytes_per_input", "fitting_batch"]

BATCHES = {"cpu": (256, 512, 1024), "cuda": (512, 1024, 2048), "mps": (256, 512)}
"""Sizes that are tried, by device; the first is the default, larger ones for small networks"""
_COMFORTABLE = 64 * 2**20
"""Bytes below which a larger batch costs nothing but saves overhead"""
_SHARE = 0.25
"""Of the memory; the rest is for temporaries, the attack's state, and everybody else"""
_UNKNOWN = 4 * 2**30


def fitting_batch(model: nn.Module, inputs: Tensor, at_most: int | None = None) -> int:
    """The largest size, a power of two or ``at_most``, whose gradients fit into the memory.

    On a CPU there is no error to wait for: a process that asks for too much is killed.

    Args:
        model: (N, C, H, W) → logits, on its device.
        inputs: (N, C, H, W) on the same device; two of them are used.
        at_most: the size that is wanted; None: the device's default.
    """
    sizes = BATCHES.get(inputs.device.type, (256,))
    limit = _SHARE * (total_memory(inputs.device) or _UNKNOWN)
    needed = bytes_per_input(model, inputs)
    comfortable = [size for size in sizes if 0 < size * needed <= _COMFORTABLE]
    size = at_most or max(sizes[:1] + tuple(comfortable))
    while size > 1 and size * needed > limit:
        size //= 2
    return size


def bytes_per_input(model: nn.Module, inputs: Tensor) -> int:
    """What autograd keeps for each input between forward and backward; 0 if it cannot be told."""
    if len(inputs) < 2:
        inputs = torch.cat((inputs, inputs))
    try:
        # Parameters are kept too, but not for each input.
        return max(0, _saved(model, inputs[:2]) - _saved(model, inputs[:1]))
    except Exception:
        return 0  # what the model has to say to its inputs is the engine's business


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
