"""A worker: somebody else who makes a call, and reports through a pipe.

Whoever it is, a fork or a thread, says the same: steps, a state between two of them when it is asked
for one, and at last a result or a failure.
"""

from __future__ import annotations

import io
import pickle
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from robench.errors import ended_process

Progress = Callable[[int], None]
"""Called with the number of steps that were completed or became unnecessary."""

Save = Callable[[Callable[[], dict[str, Any]]], None]
"""Is offered a function that makes a snapshot; decides whether to call it and keep the result."""

Call = Callable[[Progress, Save], dict[str, Any]]
"""Does a task; what it gives is plain data and tensors."""


class Worker:
    """Makes one call, as whoever waits for it sees it. Subclasses start it, and end it."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.result: dict[str, Any] | None = None
        self.failure: Exception | None = None
        self.state: dict[str, Any] | None = None
        """The latest that it told"""
        self.over = False
        self.asked = False
        self.died = False
        self.steps = 0
        """That it reported"""
        self._hearing = False
        self._heard = self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._begun

    def silent(self) -> float:
        """Seconds since its last word."""
        return time.monotonic() - self._heard

    def ask(self) -> bool:
        """Ask for the state between two steps, if there is any sense in asking; whether it was."""
        # An interruption while a message was read may have left the rest of it in the pipe.
        if self.over or self._hearing or self.asked:
            return False
        with suppress(OSError):
            self.pipe.send("state")
            self.asked = True
        return self.asked

    def hear(self) -> int:
        """Take one message; returns the steps that it reports."""
        self._hearing = True
        self._heard = time.monotonic()
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.died = not self.over  # without a word: the task is still to be done
            self.over = True
            return 0
        self._hearing = False
        if kind == "steps":
            return int(content)
        if kind == "state":
            self.asked = False
            self.state = unpacked(content)
        elif kind == "result":
            self.result = unpacked(content)
        else:
            self.failure = content
        self.over = kind in ("result", "failure")
        return 0

    def end(self) -> None:
        """Not a step more than it is at."""
        self.pipe.close()


def work(pipe: Connection, call: Call, wanted: Callable[[], bool]) -> None:
    """What a worker does: make the call, and report, as long as it is ``wanted``."""
    done = 0

    def progress(steps: int) -> None:
        nonlocal done
        done += steps

    def stepped(snapshot: Callable[[], dict[str, Any]]) -> None:
        nonlocal done
        if not wanted():
            raise EOFError
        if done:
            pipe.send(("steps", done))
            done = 0
        while pipe.poll():
            pipe.recv()
            pipe.send(("state", packed(snapshot())))

    try:
        result = call(progress, stepped)
        pipe.send(("steps", done))
        pipe.send(("result", packed(result)))
    except (EOFError, ConnectionError):
        return  # nobody listens any more
    except SystemExit as end:
        pipe.send(("failure", ended_process(end.code)))
    except Exception as error:
        pipe.send(("failure", _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error as it can be sent, with the traceback that cannot."""
    try:
        portable: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    portable.add_note("".join(traceback.format_exception(error)))
    return portable


def packed(content: Any) -> bytes:
    """Plain data and tensors, for a pipe or a file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """What :func:`packed` was given, its tensors on the CPU; it can run no code."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
