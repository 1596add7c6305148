"""What the record says about where and how it ran."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from robench.records import Environment
from robench.registry import installed_versions

_PACKAGES = ("robench", "torch", "torchvision", "numpy", "scikit-learn", "pyautoattack")


def describe_environment(
    devices: Sequence[torch.device],
    precision: str,
    batch_size: int,
    precision_reason: str | None = None,
) -> Environment:
    """Devices, versions and the state of the working tree, for the record."""
    device = devices[0]
    return Environment(
        device=" / ".join(dict.fromkeys(map(str, devices))),
        device_name=" / ".join(dict.fromkeys(map(_device_name, devices))),
        precision=precision,
        precision_reason=precision_reason,
        batch_size=batch_size,
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        versions={"python": platform.python_version(), **installed_versions(*_PACKAGES)},
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


@cache
def _git_state() -> str | None:
    """Commit of the checkout that robench runs from, ``+dirty`` if files differ; None: no checkout.

    As at first in this process: files that are edited later are not what runs.
    """
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+dirty"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class PeakMemory:
    """The most memory that a job holds on its device, from when this is made on.

    On CUDA the device's. On a CPU that of one process, the job's own or a worker's, whichever held
    more: what workers share with the process that they are forks of counts in each.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._before = _held_so_far()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def mib(self) -> float | None:
        """In MiB; None where it cannot be told.

        Systems count from the beginning of a process. What has not grown since the job began may be
        an earlier job's, and hides anything smaller.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if self.device.type != "cpu":
            return None
        seen = list(zip(self._before, _held_so_far(), strict=True))
        job = max((now for before, now in seen if now > before), default=0.0)
        hidden = max((now for before, now in seen if now == before), default=0.0)
        return job if job > hidden else None


def _held_so_far() -> tuple[float, ...]:
    """The most that this process, and any ended child of it, has ever held, in MiB."""
    try:
        import resource  # not on Windows
    except ImportError:
        return ()
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    own, ended = (
        resource.getrusage(who).ru_maxrss * unit / 2**20
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return own, ended
    # Linux lets a process that another one started begin with the peak of that other one; this
    # line is its own.
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return (int(peaks[0]) / 1024 if peaks else own), ended
