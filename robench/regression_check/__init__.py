"""The gate: is a candidate checkpoint worse than a baseline?

For each criterion there is a margin, the loss one would put up with, and three answers:

- **not worse**: a loss as large as the margin is excluded at level α (the one-sided confidence
  limit of the loss lies below the margin);
- **worse**: a loss is shown at level α, Holm-corrected over the criteria, and one as large as
  the margin is not excluded;
- **cannot tell**: neither; with the n it would take.

All criteria must be "not worse" for the gate to pass, so that a candidate whose true loss is the
margin passes with probability α at most, however many criteria there are; and a candidate
that is truly no worse anywhere is called worse with probability α at most. Accuracies use
Tango's score interval and the exact McNemar test, on the same samples; the worst class a
bootstrap inside classes; attention deviation a bootstrap of its paired mean.
"""

from robench.regression_check.baseline import LeaderboardRow, leaderboard_row, stored_pair
from robench.regression_check.gate import CheckResult, CriterionResult, Verdict, check
from robench.regression_check.outputs import (
    check_json,
    check_junit,
    check_markdown,
    check_sarif,
)
from robench.regression_check.policy import Criterion, Policy

__all__ = [
    "CheckResult",
    "Criterion",
    "CriterionResult",
    "LeaderboardRow",
    "Policy",
    "Verdict",
    "check",
    "check_json",
    "check_junit",
    "check_markdown",
    "check_sarif",
    "leaderboard_row",
    "stored_pair",
]
