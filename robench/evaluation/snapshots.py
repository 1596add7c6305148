"""Snapshots of an unfinished job: taken now and then, found again after an interruption."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Saver", "load_snapshot"]


class Saver:
    """Keeps a snapshot whenever enough time has passed since the last one.

    Args:
        keep: stores the bytes.
        interval: seconds between snapshots.
        seconds_before: time that earlier runs of the job took.
    """

    def __init__(
        self, keep: Callable[[bytes], None], interval: float, seconds_before: float = 0.0
    ) -> None:
        self._keep = keep
        self._interval = interval
        self._started = self._last = time.perf_counter()
        self._seconds_before = seconds_before
        self._latest: Callable[[], dict[str, Any]] | None = None

    def __call__(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        """Called at every point where a snapshot could be taken."""
        self._latest = snapshot
        if time.perf_counter() - self._last >= self._interval:
            self.save_now()

    @property
    def seconds(self) -> float:
        """Time that the job has taken so far, earlier runs included."""
        return self._seconds_before + time.perf_counter() - self._started

    def save_now(self) -> None:
        """Keep the latest snapshot, if there has been one."""
        if self._latest is None:
            return
        buffer = io.BytesIO()
        torch.save({"cascade": self._latest(), "seconds": self.seconds}, buffer)
        self._keep(buffer.getvalue())
        self._last = time.perf_counter()


def load_snapshot(content: bytes | None) -> dict[str, Any] | None:
    """What :class:`Saver` kept: ``cascade`` and ``seconds``; None if it is of no use any more."""
    if content is None:
        return None
    try:
        loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        return None  # of another version; the job starts again
    return loaded if {"cascade", "seconds"} <= loaded.keys() else None
