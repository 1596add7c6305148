"""How a training run computes: on which devices, in which numbers, with the same bits again.

Several devices go through Lightning Fabric rather than Accelerate, because it starts its own
processes from Python (no launcher command) and gives collectives without taking the loop.
Gradients are averaged by an explicit collective instead of ``DistributedDataParallel``: its hooks
expect one forward pass a step and do not support second-order gradients, and recipes need several
passes and some need those.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robench.errors import DeviceError, MissingDependencyError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Processes:
    """The processes that train one network together, as one of them sees them.

    Args:
        device: where this process computes.
        index: which of them this one is; number 0 writes files.
        count: how many there are.
        fabric: the ``Fabric`` that started them; None with one process.
    """

    device: torch.device
    index: int = 0
    count: int = 1
    fabric: Any = None

    def average_gradients(self, network: nn.Module) -> None:
        """Replace every gradient by its mean over the processes, in one collective."""
        self._average([p.grad for p in network.parameters() if p.grad is not None])

    def average_buffers(self, network: nn.Module) -> None:
        """Replace batch statistics by their mean over the processes."""
        self._average([b for b in network.buffers() if b.is_floating_point()])

    def _average(self, tensors: list[Tensor]) -> None:
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        parts = self.fabric.all_reduce(flat, reduce_op="mean").split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.data.copy_(part.view_as(tensor))


def launch(work: Callable[[Processes], None], device: torch.device, devices: int) -> None:
    """Run ``work`` once on ``device``, or in ``devices`` processes of its kind.

    Raises:
        MissingDependencyError: several devices were asked for without Lightning Fabric.
        DeviceError: fewer devices than asked for.
    """
    if devices == 1:
        work(Processes(device))
        return
    if device.type == "cuda" and devices > torch.cuda.device_count():
        raise DeviceError(
            f"{devices} CUDA devices asked for, {torch.cuda.device_count()} found",
            hint="Choose fewer with --devices",
        )
    try:
        # Optional: only runs on several devices need it.
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingDependencyError(
            "training on several devices needs Lightning Fabric",
            hint="pip install robench[distributed]",
        ) from error
    fabric = Fabric(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=devices,
        # Spawned, so that it works from a script, a notebook and the command line alike.
        strategy="ddp_spawn",
    )
    fabric.launch(partial(_started, work))


def _started(work: Callable[[Processes], None], fabric: Any) -> None:
    """One of several processes begins here. Module-level, because spawning pickles it."""
    work(Processes(fabric.device, fabric.global_rank, fabric.world_size, fabric))


@contextmanager
def deterministic(device: torch.device, threads: int = 0) -> Iterator[None]:
    """The same bits for the same work; the caller's settings come back afterwards.

    It is done with so many CPU ``threads``; 0: as many as torch uses already.
    """
    had_threads = torch.get_num_threads()
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    if device.type == "cuda":
        # cuBLAS reads it when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Some CUDA kernels have no deterministic form; a run must not fail for that.
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.set_num_threads(threads or had_threads)
    try:
        # Networks with dropout draw from torch's global generator.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(had_threads)
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


def chosen_precision(device: torch.device, precision: Precision) -> Literal["fp32", "bf16"]:
    """What ``"auto"`` means on this device."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def as_computed(network: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """``network`` as recipes call it: itself, or its passes in bfloat16.

    Its parameters get the layout that its convolutions are fastest in, and keep their values:
    channels last on CUDA devices and wherever bfloat16 is used. In float32 on a CPU the layout
    would change the order of sums, and with it the bits of what was trained before.
    """
    lowered = chosen_precision(device, precision) == "bf16"
    if lowered or device.type == "cuda":
        # Of 4-D parameters alone; activations follow them from the first convolution on.
        network.to(memory_format=torch.channels_last)
    return BFloat16Network(network, device.type) if lowered else network


def in_float32(network: nn.Module) -> nn.Module:
    """The same network with passes in float32, for what eight bits would make wrong."""
    return network.inner if isinstance(network, BFloat16Network) else network


class BFloat16Network(nn.Module):
    """A network whose passes autocast to bfloat16 and return float32.

    The network alone computes in bfloat16, so that losses, divergences and the arithmetic of
    attacks never run on eight bits.

    It offers ``forward``, and ``forward_features`` and ``forward_head`` where the network it wraps
    does, and shares that network's parameters, which stay float32. ``device_type`` is ``cpu``,
    ``cuda``, …
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
