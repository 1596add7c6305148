"""What the record says about where and how it ran."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from robench.records import Environment

__all__ = ["describe_environment", "peak_memory_mib"]

_PACKAGES = ("robench", "torch", "torchvision", "numpy", "scikit-learn", "pyautoattack")


def describe_environment(device: torch.device, precision: str, batch_size: int) -> Environment:
    """Device, versions and the state of the working tree, for the record."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        device=str(device),
        device_name=_device_name(device),
        precision=precision,
        batch_size=batch_size,
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        versions=versions,
        git=_git_state(),
    )


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _git_state() -> str | None:
    """Commit of the checkout that robench runs from, ``+dirty`` if files differ; None: no checkout."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+dirty"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory_mib(device: torch.device) -> float:
    """The most memory held so far: the device's on CUDA, else the process's, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
