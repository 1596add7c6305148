"""Where a training run computes: one device, or several through Lightning Fabric.

Fabric rather than Accelerate, because it starts its own processes from Python (no launcher
command) and gives collectives without taking the loop. Gradients are averaged by an explicit
collective instead of ``DistributedDataParallel``: its hooks expect one forward pass a step and do
not support second-order gradients, and recipes need several passes and some need those.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robench.errors import DeviceError, MissingDependencyError

__all__ = [
    "Engine",
    "FabricEngine",
    "LocalEngine",
    "average_buffers",
    "average_gradients",
    "deterministic",
    "launch",
]


class Engine(Protocol):
    """What the trainer asks of its surroundings."""

    device: torch.device
    rank: int
    world_size: int

    def mean(self, values: Tensor) -> Tensor:
        """The mean of ``values`` over all processes."""
        ...


class LocalEngine:
    """One process on one device.

    Args:
        device: where to compute.
    """

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mean(self, values: Tensor) -> Tensor:
        """``values`` themselves."""
        return values


class FabricEngine:
    """One of several processes that Fabric started.

    Args:
        fabric: the ``Fabric`` that Fabric hands to the launched function.
    """

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric
        self.device: torch.device = fabric.device
        self.rank: int = fabric.global_rank
        self.world_size: int = fabric.world_size

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes."""
        result: Tensor = self._fabric.all_reduce(values, reduce_op="mean")
        return result


def launch(work: Callable[[Engine], None], device: torch.device, devices: int) -> None:
    """Run ``work`` once on ``device``, or in ``devices`` processes of its kind.

    Raises:
        MissingDependencyError: several devices were asked for without Lightning Fabric.
        DeviceError: fewer devices than asked for.
    """
    if devices == 1:
        work(LocalEngine(device))
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
    fabric.launch(_Worker(work))


class _Worker:
    """Fabric calls the launched function with itself; spawning needs something picklable."""

    def __init__(self, work: Callable[[Engine], None]) -> None:
        self._work = work

    def __call__(self, fabric: Any) -> None:
        self._work(FabricEngine(fabric))


def average_gradients(engine: Engine, network: nn.Module) -> None:
    """Replace every gradient by its mean over the processes, in one collective."""
    if engine.world_size == 1:
        return
    _average(engine, [p.grad for p in network.parameters() if p.grad is not None])


def average_buffers(engine: Engine, network: nn.Module) -> None:
    """Replace batch statistics by their mean over the processes."""
    if engine.world_size == 1:
        return
    _average(engine, [b for b in network.buffers() if b.is_floating_point()])


def _average(engine: Engine, tensors: list[Tensor]) -> None:
    if not tensors:
        return
    mean = engine.mean(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    start = 0
    for tensor in tensors:
        tensor.data.copy_(mean[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


@contextmanager
def deterministic(device: torch.device, threads: int = 0) -> Iterator[None]:
    """The same bits for the same work; the caller's settings come back afterwards.

    Args:
        device: where the work is done.
        threads: CPU threads to use; 0: as many as torch uses already.
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
