"""Numbers and memory layout of a training run's passes.

In bfloat16 the network alone computes in it: what it returns is float32 again, so that losses,
divergences and the arithmetic of attacks never run on eight bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["BFloat16Network", "chosen_precision", "with_layout", "with_precision"]

Precision = Literal["auto", "fp32", "bf16"]


def chosen_precision(device: torch.device, precision: Precision) -> Literal["fp32", "bf16"]:
    """What ``"auto"`` means on this device."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def with_layout(network: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """``network`` in the layout that its convolutions are fastest in; its values stay.

    Channels last on CUDA devices and wherever bfloat16 is used. In float32 on a CPU the layout
    would change the order of sums, and with it the bits of what was trained before.
    """
    if device.type == "cuda" or chosen_precision(device, precision) == "bf16":
        # Of 4-D parameters alone; activations follow them from the first convolution on.
        return network.to(memory_format=torch.channels_last)
    return network


def with_precision(network: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """``network`` as recipes call it: itself, or its passes in bfloat16."""
    if chosen_precision(device, precision) == "bf16":
        return BFloat16Network(network, device.type)
    return network


class BFloat16Network(nn.Module):
    """A network whose passes autocast to bfloat16 and return float32.

    It offers ``forward``, and ``forward_features`` and ``forward_head`` where the network it wraps
    does, and shares that network's parameters, which stay float32.

    Args:
        inner: the network.
        device_type: ``cpu``, ``cuda``, …
    """

    def __init__(self, inner: nn.Module, device_type: str) -> None:
        super().__init__()
        self.inner = inner
        self._device_type = device_type
        for name in ("forward_features", "forward_head"):
            method = getattr(inner, name, None)
            if callable(method):
                setattr(self, name, self._in_bfloat16(method))

    def forward(self, *inputs: Any, **arguments: Any) -> Any:
        """As ``inner``, with float32 tensors where that returns bfloat16 ones."""
        return self._in_bfloat16(self.inner)(*inputs, **arguments)

    def _in_bfloat16(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def lowered(*inputs: Any, **arguments: Any) -> Any:
            # One context a pass: casts of weights made without gradients must not serve later.
            with torch.autocast(self._device_type, torch.bfloat16):
                returned = call(*inputs, **arguments)
            return _as_float32(returned)

        return lowered


def _as_float32(value: Any) -> Any:
    """Every bfloat16 tensor in lists and tuples of tensors as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_as_float32(part) for part in value)
    return value
