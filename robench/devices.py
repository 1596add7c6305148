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
        if not torch.cuda.is_available():
            raise DeviceError(
                "CUDA was asked for, but torch sees no CUDA device",
                hint="Use --device cpu, or install a driver and a CUDA build of torch",
            )
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise DeviceError(
                f"there is no {name}: torch sees {torch.cuda.device_count()} CUDA device(s)"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("MPS was asked for, but torch has no MPS here", hint="Use --device cpu")
    elif device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"robench does not run on {device.type!r}", hint="Use cpu, cuda or mps")
    return device
