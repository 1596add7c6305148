"""From two models' records to an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from scipy import stats

from robench.errors import UsageError
from robench.regression_check.leaderboard_row import LeaderboardRow, row_differences
from robench.regression_check.policy import Criterion, Policy
from robench.regression_check.verdicts import CheckResult, CriterionResult, Verdict
from robench.reporting.differences import (
    Difference,
    accuracy_difference,
    metric_difference,
    shared_metric_attack,
    worst_class_difference,
)
from robench.reporting.model_results import ModelResult, common_attacks
from robench.statistics import (
    Interval,
    holm,
    n_for_difference,
    n_for_noninferiority,
    smallest_difference,
)

__all__ = ["check"]


def check(
    candidate: ModelResult, baseline: ModelResult | LeaderboardRow, policy: Policy | None = None
) -> CheckResult:
    """Hold a candidate against a baseline.

    Args:
        candidate: its records.
        baseline: records of the same group (paired comparison), or a leaderboard's row, of which
            only accuracies can be compared, unpaired.
        policy: margins; None: the defaults.

    Raises:
        UsageError: the two were not evaluated under the same conditions, or have no attack in
            common.
    """
    rules = Policy() if policy is None else policy
    if isinstance(baseline, LeaderboardRow):
        return _check_row(candidate, baseline, rules)
    if candidate.group != baseline.group:
        raise UsageError(
            f"{candidate.model.name} was evaluated on {candidate.group}, "
            f"{baseline.model.name} on {baseline.group}",
            hint="Evaluate both with the same --dataset, --norm, --eps, --n and --seed",
        )
    one, two, left_out = common_attacks(candidate, baseline)
    problems = []
    for name in baseline.attacks:
        if name not in candidate.attacks:
            problems.append(
                f"{candidate.model.name} has no record of {name}, which {baseline.model.name} faced"
            )
        elif name not in one.attacks:
            problems.append(f"{name} had other parameters for {candidate.model.name}")
    for result in (one, two):
        if count := int(result.errored.sum()):
            problems.append(f"{count} samples of {result.model.name} errored")
    identical = candidate.model.fingerprint == baseline.model.fingerprint
    if identical:
        left_out.append("both are the same network with the same weights: nothing can be worse")
    level = 1 - 2 * rules.alpha
    attack = shared_metric_attack(one, two)
    found: dict[str, Difference] = {
        "robust_acc": accuracy_difference("robust_acc", one.robust, two.robust, level),
        "clean_acc": accuracy_difference("clean_acc", one.clean_correct, two.clean_correct, level),
        "worst_class_robust_acc": worst_class_difference(one, two, level),
    }
    if attack is not None:
        change = metric_difference("attention_deviation", one, two, attack, level)
        if change.defined:
            found["attention_deviation"] = change
    return _decide(
        candidate.model.name,
        baseline.model.name,
        str(candidate.group),
        found,
        rules,
        left_out,
        problems,
        identical=identical,
    )


def _check_row(candidate: ModelResult, baseline: LeaderboardRow, rules: Policy) -> CheckResult:
    found = row_differences(candidate, baseline, 1 - 2 * rules.alpha)
    problems = []
    if count := int(candidate.errored.sum()):
        problems.append(f"{count} samples of {candidate.model.name} errored")
    notes = [
        f"{baseline.name} is known by its leaderboard row alone: compared unpaired, "
        "which takes more samples"
    ]
    group = str(candidate.group)
    return _decide(candidate.model.name, baseline.name, group, found, rules, notes, problems)


def _decide(
    candidate: str,
    baseline: str,
    group: str,
    found: Mapping[str, Difference],
    rules: Policy,
    notes: list[str],
    problems: list[str],
    *,
    identical: bool = False,
) -> CheckResult:
    criteria = rules.criteria
    p_values = [found[name].p_worse if name in found else math.nan for name in criteria]
    adjusted = dict(zip(criteria, holm(p_values), strict=True))
    results = tuple(
        _judge(name, criterion, found.get(name), adjusted[name], rules, identical)
        for name, criterion in criteria.items()
    )
    verdicts = {item.verdict for item in results}
    missing = any(item.verdict is Verdict.NOT_MEASURED and item.required for item in results)
    if Verdict.WORSE in verdicts:
        verdict = Verdict.WORSE
    elif (
        missing or problems or Verdict.CANNOT_TELL in verdicts or Verdict.NOT_WORSE not in verdicts
    ):
        verdict = Verdict.CANNOT_TELL
    else:
        verdict = Verdict.NOT_WORSE
    return CheckResult(
        candidate, baseline, group, verdict, results, rules, tuple(notes), tuple(problems)
    )


def _judge(
    quantity: str,
    criterion: Criterion,
    item: Difference | None,
    p_worse: float,
    rules: Policy,
    identical: bool,
) -> CriterionResult:
    if item is None:
        unit: Literal["points", ""] = "points" if quantity.endswith("_acc") else ""
        return CriterionResult(
            quantity, unit, criterion.margin, Verdict.NOT_MEASURED, criterion.required
        )
    loss = item.loss
    # No n is too small to know that a model is not worse than itself.
    if identical or loss.high < criterion.margin:
        verdict = Verdict.NOT_WORSE
    elif p_worse < rules.alpha:
        verdict = Verdict.WORSE
    else:
        verdict = Verdict.CANNOT_TELL
    to_pass, to_fail, detectable = _sizes(item, loss, criterion.margin, rules)
    return CriterionResult(
        quantity=quantity,
        unit=item.unit,
        margin=criterion.margin,
        verdict=verdict,
        required=criterion.required,
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
    item: Difference, loss: Interval, margin: float, rules: Policy
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
            n_for_difference(loss.estimate / 100, share, alpha=2 * alpha, power=power)
            if loss.estimate > 0
            else None
        )
        shown = smallest_difference(counts.n, share, alpha=2 * alpha, power=power)
        return to_pass, to_fail, None if shown is None else 100 * shown
    if math.isnan(item.spread) or not item.n:
        return None, None, None
    reach = (float(stats.norm.isf(alpha)) + float(stats.norm.ppf(power))) * item.spread
    to_pass = max(1, math.ceil((reach / margin) ** 2))
    to_fail = math.ceil((reach / loss.estimate) ** 2) if loss.estimate > 0 else None
    return to_pass, to_fail, reach / math.sqrt(item.n)
