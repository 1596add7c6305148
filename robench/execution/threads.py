"""Threads of this process: each waits for something that works without it, such as a device.

What a thread calls must not share what another one's changes: a model on each device is a copy.
"""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import dataclass

from robench.execution.pool import Workers
from robench.execution.worker import Call, Worker, work


@dataclass(frozen=True)
class Threads(Workers):
    """So many threads. None is ever ended in the midst of a step."""

    size: int

    def start(self, number: int, call: Call) -> Worker:
        """A thread that makes the call."""
        return _Thread(call)


class _Thread(Worker):
    def __init__(self, call: Call) -> None:
        ours, theirs = multiprocessing.Pipe()
        super().__init__(ours)
        self._wanted = True
        self._pipe = theirs
        self._thread = threading.Thread(target=self._work, args=(call,), daemon=True)
        self._thread.start()

    def _work(self, call: Call) -> None:
        with self._pipe:
            work(self._pipe, call, lambda: self._wanted)

    def end(self) -> None:
        """Wait until it has done the step that it is at: what it uses is needed elsewhere."""
        self._wanted = False
        super().end()
        self._thread.join()
