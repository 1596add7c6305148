"""Are published numbers found again? Records and cards (:mod:`robench.reproduction.claims`), and papers
(:mod:`robench.reproduction.papers`), which need no torch."""

from typing import TYPE_CHECKING

from robench.registry import lazily

if TYPE_CHECKING:
    from robench.reproduction.claims import compare_records, reproduce_card, reproduce_records
    from robench.reproduction.findings import Finding, exit_code
    from robench.reproduction.papers import PAPERS, Paper, reproduce_paper

__all__ = [
    "PAPERS",
    "Finding",
    "Paper",
    "compare_records",
    "exit_code",
    "reproduce_card",
    "reproduce_paper",
    "reproduce_records",
]

__getattr__ = lazily(
    __name__,
    {
        "claims": ("compare_records", "reproduce_card", "reproduce_records"),
        "findings": ("Finding", "exit_code"),
        "papers": ("PAPERS", "Paper", "reproduce_paper"),
    },
)
