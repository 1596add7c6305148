"""Which device to run on, waiting for it, and going on when its memory runs out."""

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from robench.errors import DeviceError

ResultT = TypeVar("ResultT")


_MOST_LOOPS = 256
_ENOUGH, _ENOUGH_A_THREAD, _ENOUGH_FOR_ANY = 4, 8, 32
"""Inputs of a pass on a CPU, by one thread and by several"""


def resolve_devices(name: str | torch.device) -> tuple[torch.device, ...]:
    """Where searches run side by side: ``cuda:0,cuda:1``, or ``cuda:all``; ``cpu:2`` for two search
    loops on the CPU; or one device, as for :func:`resolve_device`.

    Raises:
        DeviceError: a name is not a device, a device is not there or named twice, or they are of
            several kinds.
    """
    text = str(name)
    if text == "cuda:all":
        count = torch.cuda.device_count()
        return tuple(resolve_device(f"cuda:{index}") for index in range(max(1, count)))
    kind, _, number = text.partition(":")
    if kind == "cpu" and number.isdecimal() and 1 <= int(number) <= _MOST_LOOPS:
        return (torch.device("cpu"),) * int(number)
    found = tuple(resolve_device(part.strip()) for part in text.split(","))
    if len(set(found)) < len(found) or len({device.type for device in found}) > 1:
        raise DeviceError(
            f"{text!r} names a device twice, or several kinds",
            hint="Write --device cuda:0,cuda:1 or cuda:all",
        )
    return found


def resolve_device(name: str | torch.device) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` → a device that is there.

    Raises:
        DeviceError: the name is not a device, or the device is not there; or it names several.
    """
    if "," in str(name) or str(name) == "cuda:all" or re.fullmatch("cpu:0*[1-9][0-9]*", str(name)):
        raise DeviceError(
            f"{str(name)!r} is not one device", hint="Several are for `robench run` and its like"
        )
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


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters, or else its buffers, are; the CPU where it has neither."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def single_precision() -> Iterator[None]:
    """What is made inside is float32 by default, and computed in it, whatever torch's defaults are in
    this process: on NVIDIA's devices it has convolutions rounded to TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = torch.get_default_dtype(), matmul.allow_tf32, cudnn.allow_tf32
    torch.set_default_dtype(torch.float32)
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        matmul.allow_tf32, cudnn.allow_tf32 = before[1:]


def filled(part: slice, device: torch.device, at_most: int) -> slice | Tensor:
    """Positions from ``part.start`` to ``part.stop`` for a pass; where these are few on a CPU, int64 (k,)
    with the last one again and again, ``at_most`` so many.

    For a few inputs processors take other kernels, which round otherwise. From four on, or eight a thread,
    what a network gives for an input does not depend on how many are beside it
    (``benchmarks/results/executors.md``).
    """
    if device.type != "cpu":
        return part
    threads = torch.get_num_threads()
    enough = _ENOUGH if threads == 1 else min(_ENOUGH_A_THREAD * threads, _ENOUGH_FOR_ANY)
    count, wanted = part.stop - part.start, min(enough, at_most)
    if not 0 < count < wanted:
        return part
    return torch.arange(part.start, part.start + wanted).clamp_(max=part.stop - 1)


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


class Parts(Generic[ResultT]):
    """Calls something for parts of a batch: fewer at a time once memory has run out.

    Attributes:
        size: positions in a call at most.
        halvings: how often memory ran out.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.halvings = 0

    def map(
        self,
        count: int,
        call: Callable[[slice], ResultT],
        alone: Callable[[int, Exception], ResultT] | None = None,
    ) -> list[ResultT]:
        """What ``call`` gives for the positions 0 … ``count`` − 1, a result for each part.

        Args:
            count: positions.
            call: for some of them.
            alone: what a position gives for which the call fails by itself; a part that fails is
                halved until the guilty ones are alone. None: only want of memory is forgiven.

        Raises:
            Exception: what ``call`` raised and nothing forgives.
        """
        pending = [slice(i, min(i + self.size, count)) for i in range(0, max(count, 1), self.size)]
        done: list[ResultT] = []
        while pending:
            part = pending.pop(0)
            try:
                done.append(call(part))
            except Exception as error:  # whatever a model may raise
                exhausted, length = is_out_of_memory(error), part.stop - part.start
                if length == 1 and alone is not None:
                    done.append(alone(part.start, error))
                    continue
                if length == 1 or not (exhausted or alone):
                    raise
                middle = part.start + (length + 1) // 2
                if exhausted:
                    self.halvings += 1
                    self.size = min(self.size, middle - part.start)
                    free_memory()
                pending[:0] = [slice(part.start, middle), slice(middle, part.stop)]
        return done
