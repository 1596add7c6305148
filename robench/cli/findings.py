"""What the doctor found, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robench.doctor import Finding

__all__ = ["findings_text"]


def findings_text(examined: str, findings: Sequence[Finding]) -> str:
    """A line that says how many, then each with its evidence and mend.

    Args:
        examined: which model, on which samples.
        findings: none says so.
    """
    count = f"{len(findings)} found" if findings else "nothing found"
    parts = [
        f"{finding.severity}: {finding.name}\n  {finding.evidence}\n  mend: {finding.mend}"
        for finding in findings
    ]
    return "\n\n".join([f"{examined}: {count}", *parts])
