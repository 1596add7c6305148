"""From two models' records to an answer, which is data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from robench.regression_check.baseline import LeaderboardRow, row_differences
from robench.regression_check.policy import Criterion, Policy
from robench.reporting.differences import (
    Difference,
    common_attacks,
    differences,
    targeted_name,
)
from robench.reporting.model_results import ModelResult
from robench.statistics import holm, n_for_difference, n_for_noninferiority, smallest_difference
from robench.statistics.numerics import normal_quantile


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
    """The policy's name for it; ``targeted_robust_acc`` and so on of what was attacked with targets."""
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


def check(
    candidate: ModelResult, baseline: ModelResult | LeaderboardRow, policy: Policy | None = None
) -> CheckResult:
    """Hold a candidate against a baseline, by default margins where there is no policy.

    With records of the same group the comparison is paired; of a leaderboard's row only accuracies
    can be compared, unpaired.

    Raises:
        UsageError: the two were not evaluated under the same conditions, or have no attack in
            common.
    """
    rules = policy or Policy()
    level = 1 - 2 * rules.alpha
    corrupted = candidate.threat_model.corrupted is not None
    criteria = rules.corrupted_criteria if corrupted else rules.criteria
    if isinstance(baseline, LeaderboardRow):
        name, identical = baseline.name, False
        compared: tuple[ModelResult, ...] = (candidate,)
        changes = row_differences(candidate, baseline, level)
        problems = []
        notes = [
            f"{name} is known by its leaderboard row alone: compared unpaired, "
            "which takes more samples"
        ]
    else:
        name = baseline.model.name
        one, two, notes = common_attacks(candidate, baseline)
        compared = (one, two)
        changes = differences(one, two, level, wanted=criteria)
        problems = _unmatched_attacks(candidate, baseline, set(one.attacks))
        identical = candidate.model.fingerprint == baseline.model.fingerprint
        if identical:
            notes.append("both are the same network with the same weights: nothing can be worse")
    targeted = candidate.threat_model.targets is not None
    if targeted:
        notes.append("robust means: classified correctly, and not brought to its target")
    for result in compared:
        if count := int(result.errored.sum()):
            problems.append(f"{count} samples of {result.model.name} errored")
    found = {change.quantity: change for change in changes if change.interval.defined or identical}
    adjusted = holm([found[key].p_worse if key in found else math.nan for key in criteria])
    results = tuple(
        _judge(
            targeted_name(key) if targeted else key,
            criterion,
            found.get(key),
            p_worse,
            rules,
            identical,
        )
        for (key, criterion), p_worse in zip(criteria.items(), adjusted, strict=True)
    )
    return CheckResult(
        candidate.model.name,
        name,
        str(candidate.group),
        _overall(results, problems),
        results,
        rules,
        tuple(notes),
        tuple(problems),
    )


def _unmatched_attacks(
    candidate: ModelResult, baseline: ModelResult, shared: set[str]
) -> list[str]:
    """A sentence for each of the baseline's attacks that the candidate did not face likewise."""
    name = candidate.model.name
    return [
        f"{attack} had other parameters for {name}"
        if attack in candidate.attacks
        else f"{name} has no record of {attack}, which {baseline.model.name} faced"
        for attack in baseline.protocol
        if attack not in shared
    ]


def _overall(results: Sequence[CriterionResult], problems: Sequence[str]) -> Verdict:
    verdicts = {item.verdict for item in results}
    if Verdict.WORSE in verdicts:
        return Verdict.WORSE
    missing = any(item.verdict is Verdict.NOT_MEASURED and item.required for item in results)
    undecided = Verdict.CANNOT_TELL in verdicts or Verdict.NOT_WORSE not in verdicts
    return Verdict.CANNOT_TELL if undecided or missing or problems else Verdict.NOT_WORSE


def _judge(
    quantity: str,
    criterion: Criterion,
    item: Difference | None,
    p_worse: float,
    rules: Policy,
    identical: bool,
) -> CriterionResult:
    unit: Literal["points", ""] = "points" if quantity.endswith("_acc") else ""
    margin, required = criterion.margin, criterion.required
    if item is None:
        return CriterionResult(quantity, unit, margin, Verdict.NOT_MEASURED, required)
    loss = item.loss
    # No n is too small to know that a model is not worse than itself.
    if identical or loss.high < margin:
        verdict = Verdict.NOT_WORSE
    elif p_worse < rules.alpha:
        verdict = Verdict.WORSE
    else:
        verdict = Verdict.CANNOT_TELL
    to_pass, to_fail, detectable = _sizes(item, loss.estimate, margin, rules)
    return CriterionResult(
        quantity,
        unit,
        margin,
        verdict,
        required,
        baseline=item.second,
        candidate=item.first,
        loss=loss.estimate,
        loss_low=loss.low,
        loss_high=loss.high,
        p_worse=p_worse,
        n=item.n,
        n_to_pass=to_pass,
        n_to_fail=to_fail,
        detectable=detectable,
    )


def _sizes(
    item: Difference, loss: float, margin: float, rules: Policy
) -> tuple[int | None, int | None, float | None]:
    """n to pass, n to fail, and the detectable loss; two-sided functions get 2α."""
    alpha, power = rules.alpha, rules.power
    counts = item.counts
    if counts is not None and counts.n:
        share = counts.discordant / counts.n
        to_pass = (
            n_for_noninferiority(margin / 100, share, alpha=alpha, power=power)
            if margin < 100
            else None
        )
        to_fail = (
            n_for_difference(loss / 100, share, alpha=2 * alpha, power=power) if loss > 0 else None
        )
        shown = smallest_difference(counts.n, share, alpha=2 * alpha, power=power)
        return to_pass, to_fail, None if shown is None else 100 * shown
    # Figures that do not vary, such as 0 % beside a row's 0 %, say nothing of how they would.
    if not item.spread > 0 or not item.n:
        return None, None, None
    reach = (normal_quantile(power) - normal_quantile(alpha)) * item.spread
    to_pass = max(1, math.ceil((reach / margin) ** 2))
    to_fail = math.ceil((reach / loss) ** 2) if loss > 0 else None
    return to_pass, to_fail, reach / math.sqrt(item.n)
