"""Forks of this process, on a CPU: they have the models, the data and the attack without a copy.

Two processes that search on one core each do more than one whose every operation is split over
two cores: nothing waits for the slower half, and the search's own bookkeeping is shared out as well.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess

import torch

from robench.errors import ended_process
from robench.execution.pool import Workers
from robench.execution.worker import Call, Worker, work

_STALLED = 300.0
"""Seconds without a step after which a worker counts as hanging, and is ended"""
_REHEARSAL, _SLOWER = 20.0, 50.0
"""Seconds, and times the parent's, that a fork has for a call before it counts as hanging"""


@dataclass(frozen=True)
class Forks(Workers):
    """So many processes, each a fork of this one.

    One that is killed, as for want of memory, has its task done at home, and so has one that makes no
    step in five minutes, which is ended.
    """

    size: int

    @property
    def patience(self) -> float:
        """Seconds that a worker may be silent for."""
        return _STALLED

    def start(self, number: int, call: Call) -> Worker:
        """A fork that makes the call."""
        return _Fork(call)


class _Fork(Worker):
    """A process, as its parent sees it."""

    def __init__(self, call: Call) -> None:
        ours, theirs = multiprocessing.Pipe()
        super().__init__(ours)
        self.process = _forked(_work, ours, theirs, call, os.getpid())
        theirs.close()

    def end(self) -> None:
        """Not a step more."""
        super().end()
        # One that has said all ends by itself in a moment.
        said_all = self.result is not None or self.failure is not None or self.died
        self.process.join(1 if said_all else 0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode
        # Less than 0: a signal, as of a system without memory left.
        if self.died and code is not None and code >= 0:
            self.failure = ended_process(code)
        self.process.close()


def _work(parents: Connection, pipe: Connection, call: Call, parent: int) -> None:
    """The forked process."""
    _init_worker()
    parents.close()
    work(pipe, call, lambda: os.getppid() == parent)


def worker_count(device: torch.device, wanted: int | None) -> int:
    """How many forks to search in side by side: as ``wanted``, else one a thread of torch's.

    One wherever a fork could not search: off the CPU, where there is no fork, in a process that may
    have an accelerator's threads, or that is some other program's worker.
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


def _forked(target: Callable[..., None], *arguments: object) -> ForkProcess:
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


def _init_worker() -> None:
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
    process = _forked(_rehearse, call)
    process.join(patience)
    done = process.exitcode == 0
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
    return done


def _rehearse(call: Callable[[], object]) -> None:
    _init_worker()
    try:
        call()
    except Exception:
        sys.exit(1)  # without a traceback that would look like a failure of the run
