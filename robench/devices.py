"""Which device to run on."""

from __future__ import annotations

import torch

from robench.errors import DeviceError

__all__ = ["resolve_device"]


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
