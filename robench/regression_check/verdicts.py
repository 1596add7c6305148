"""What the gate answers, as data."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from robench.regression_check.policy import Policy


class Verdict(StrEnum):
    """The answer of one criterion, and of the gate."""

    NOT_WORSE = "not worse"
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"
    NOT_MEASURED = "not measured"
    """Only of a criterion: one of the two models lacks the figures."""


@dataclass(frozen=True)
class CriterionResult:
    """One criterion's answer. Figures are NaN where undefined."""

    quantity: str
    unit: Literal["points", ""]
    margin: float
    verdict: Verdict
    required: bool
    baseline: float = math.nan
    candidate: float = math.nan
    loss: float = math.nan
    """Positive: the candidate is worse."""
    loss_low: float = math.nan
    loss_high: float = math.nan
    """Limits of the loss, each one-sided at α."""
    p_worse: float = math.nan
    """Holm-corrected p-value of "the candidate is not worse"."""
    n: int = 0
    n_to_pass: int | None = None
    """n that would exclude a loss of the margin if there is none in truth."""
    n_to_fail: int | None = None
    """n that would show the observed loss if it is the true one."""
    detectable: float | None = None
    """The smallest true loss that this n shows with the policy's power."""


@dataclass(frozen=True)
class CheckResult:
    """What the gate says."""

    candidate: str
    baseline: str
    group: str
    verdict: Verdict
    criteria: tuple[CriterionResult, ...]
    policy: Policy
    notes: tuple[str, ...] = ()
    """What was left out of the comparison, and why."""
    problems: tuple[str, ...] = ()
    """What forbids a pass: errored samples, attacks that the candidate lacks."""

    @property
    def exit_code(self) -> int:
        """0 not worse, 1 worse, 2 cannot tell."""
        return {Verdict.NOT_WORSE: 0, Verdict.WORSE: 1}.get(self.verdict, 2)

    @property
    def n_needed(self) -> int | None:
        """The n after which every undecided criterion could be decided; None if unknown."""
        undecided = [item for item in self.criteria if item.verdict is Verdict.CANNOT_TELL]
        # Which of the two it will be is not known: the larger one decides either way.
        needed = [max(item.n_to_pass or 0, item.n_to_fail or 0) for item in undecided]
        return max(needed) if needed and all(needed) else None
