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
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import DeviceError, MissingDependencyError

__all__ = ["Processes", "deterministic", "launch"]


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
