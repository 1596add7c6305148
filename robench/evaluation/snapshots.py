"""Snapshots of unfinished jobs: kept now and then, and read when the job goes on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robench.execution import packed, unpacked

_SNAPSHOT_FORMAT = 5


@dataclass
class Saver:
    """Keeps a snapshot of an unfinished job whenever enough time has passed since the last one."""

    keep: Callable[[bytes], None]
    interval: float
    """Seconds between snapshots"""
    seconds_before: float = 0.0
    """Time that earlier runs of the job took"""
    margins: Tensor = field(default_factory=lambda: torch.empty(0))
    """Clean ones, float64 (n,), of the model whose job it is"""
    slopes: dict[str, Any] | None = None
    """The model's, as plain data"""

    def __post_init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._latest: Callable[[], dict[str, Any]] | None = None

    def __call__(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        """Called at every point where a snapshot could be taken."""
        self._latest = snapshot
        if time.perf_counter() - self._last >= self.interval:
            self.save_now()

    @property
    def seconds(self) -> float:
        """Time that the job has taken so far, earlier runs included."""
        return self.seconds_before + time.perf_counter() - self._started

    def save_now(self) -> None:
        """Keep the latest snapshot, if there has been one: it is of the last whole step."""
        if self._latest is None:
            return
        content = {"cascade": self._latest(), "seconds": self.seconds, "margins": self.margins}
        content |= {"slopes": self.slopes, "format": _SNAPSHOT_FORMAT}
        self.keep(packed(content))
        self._last = time.perf_counter()


def load_snapshot(content: bytes | None) -> dict[str, Any] | None:
    """What :class:`Saver` kept: ``cascade`` and ``seconds``; None if it is of no use any more."""
    if content is None:
        return None
    try:
        loaded: dict[str, Any] = unpacked(content)
    except Exception:
        return None  # of another version; the job starts again
    return loaded if loaded.get("format") == _SNAPSHOT_FORMAT else None
