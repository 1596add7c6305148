"""Forks: whether this process can be divided, how it is, and what every part does first."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkProcess

import torch

__all__ = ["forked", "settle_in", "survives_fork", "worker_count"]

_REHEARSAL, _SLOWER = 20.0, 50.0
"""Seconds, and times the parent's, that a fork has for a call before it counts as hanging"""


def worker_count(device: torch.device, wanted: int | None) -> int:
    """How many searches to run side by side.

    Args:
        device: where the model runs.
        wanted: the user's number; None: one for each thread that torch would use.

    Returns:
        One wherever a fork could not search: off the CPU, where there is no fork, in a process
        that may have an accelerator's threads, or that is some other program's worker.
    """
    safe = (
        device.type == "cpu"
        and sys.platform.startswith("linux")
        and not torch.accelerator.is_available()
        and not multiprocessing.current_process().daemon
    )
    if not safe:
        return 1
    return torch.get_num_threads() if wanted is None else wanted


def forked(target: Callable[..., None], *arguments: object) -> ForkProcess:
    """A copy of this process that calls ``target`` and ends; started, and ended with its parent."""
    process = multiprocessing.get_context("fork").Process(
        target=target, args=arguments, daemon=True
    )
    with warnings.catch_warnings():
        # Python warns of every fork with threads about; those of OpenMP sleep, and the child does
        # without them.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def settle_in() -> None:
    """What every fork does first."""
    # Ctrl-C reaches the whole group; the parent asks for what it needs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # More than one would wait for threads of OpenMP that a fork does not bring along.
    torch.set_num_threads(1)


def survives_fork(call: Callable[[], object]) -> bool:
    """Whether a fork can make the call as well.

    Libraries with threads of their own may hang there: the call is made here, then in a fork,
    which gets many times as long.
    """
    started = time.perf_counter()
    call()
    patience = _REHEARSAL + _SLOWER * (time.perf_counter() - started)
    process = forked(_rehearse, call)
    process.join(patience)
    done = process.exitcode == 0
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
    return done


def _rehearse(call: Callable[[], object]) -> None:
    settle_in()
    try:
        call()
    except Exception:
        sys.exit(1)  # without a traceback that would look like a failure of the run
