"""What the doctor says: a fault, what shows it, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robench.records import Flag

__all__ = ["Finding", "Severity", "first_line", "listed"]

Severity = Literal["note", "warning", "severe"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd.

    Attributes:
        name: what it is, as it reads among a record's flags.
        severity: ``severe`` makes the numbers meaningless, ``warning`` doubtful; a ``note`` only
            wants to be known.
        evidence: what was seen, with figures.
        mend: what to do about it, such as what to write in the card.
        count: samples concerned, where that makes sense.
    """

    name: str
    severity: Severity
    evidence: str
    mend: str
    count: int | None = None

    def flag(self) -> Flag:
        """The finding as a record keeps it."""
        return Flag(
            name=self.name,
            severity=self.severity,
            evidence=f"{self.evidence}. {self.mend}",
            count=self.count,
        )


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names for a sentence; beyond ``most`` of them, how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def first_line(error: Exception) -> str:
    """What an error says, on one line; its kind if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
