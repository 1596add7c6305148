"""How an evaluation tells others how it gets on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from robench.results.store import StoredRecord

__all__ = ["Listener", "Silent"]


class Listener(Protocol):
    """Is told how an evaluation gets on."""

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        """A job begins, or its record was found in the store."""

    def advanced(self, steps: int) -> None:
        """Search steps of the current job were completed or became unnecessary."""

    def job_finished(self, stored: StoredRecord) -> None:
        """A record is in the store."""

    def model_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        """All jobs of a model are done."""


class Silent:
    """A listener that says nothing."""

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        """Nothing."""

    def advanced(self, steps: int) -> None:
        """Nothing."""

    def job_finished(self, stored: StoredRecord) -> None:
        """Nothing."""

    def model_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        """Nothing."""
