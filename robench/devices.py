"""Which device to run on, waiting for it, and its memory."""

from __future__ import annotations

import gc
import os

import torch

from robench.errors import DeviceError

__all__ = [
    "free_memory",
    "is_out_of_memory",
    "resolve_device",
    "synchronise",
    "total_memory",
]


def resolve_device(name: str | torch.device) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` → a device that is there.

    Raises:
        DeviceError: the name is not a device, or the device is not there.
    """
    if str(name) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(
            f"unknown device {str(name)!r}", hint="Use auto, cpu, cuda, cuda:1 or mps"
        ) from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise DeviceError(
                f"{device} is not there: torch sees {count} CUDA device(s)",
                hint="Use --device cpu or auto, or install a driver and a CUDA build of torch",
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "mps is not there: torch has no MPS here", hint="Use --device cpu or auto"
        )
    elif device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"robench does not run on {device.type!r}", hint="Use cpu, cuda or mps")
    return device


def synchronise() -> None:
    """Wait until the accelerator, if there is one, has done what it was asked for."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def free_memory() -> None:
    """Give cached memory back to the device."""
    gc.collect()
    # torch.accelerator has its own from torch 2.9 on.
    empty_cache = getattr(torch.accelerator, "empty_cache", torch.cuda.empty_cache)
    if torch.accelerator.is_available():
        empty_cache()


def total_memory(device: torch.device) -> int | None:
    """Bytes of a device's memory, the machine's for those that share it; None: unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None  # no POSIX
