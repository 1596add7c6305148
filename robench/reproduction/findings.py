"""What is said of a number that is claimed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["same", "agrees", "differs", "cannot tell"]


@dataclass(frozen=True)
class Finding:
    """One number, and whether it was found again.

    Attributes:
        model, under: whose it is, and at which data and threat model.
        quantity: ``clean_acc``, ``robust_acc`` over all attacks, or an attack's column.
        claimed, measured: percent; None: there is none.
        low, high: 95 %; of records the interval of ``measured`` − ``claimed`` in points, of a card's
            figure that of ``measured`` in percent.
        samples: how many have another verdict than was recorded; None: not known.
        n, of: how many samples it is of, and how many were claimed of; None: not known.
        verdict, why: what it comes to; why nobody can tell.
    """

    model: str
    under: str
    quantity: str
    claimed: float | None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    samples: int | None = None
    n: int | None = None
    of: int | None = None
    verdict: Verdict = "cannot tell"
    why: str = ""


def exit_code(findings: Iterable[Finding]) -> int:
    """As the gate's: 0 all found again, 1 something differs, 2 nobody can tell of something."""
    verdicts = {finding.verdict for finding in findings}
    return 1 if "differs" in verdicts else 2 if "cannot tell" in verdicts or not verdicts else 0
