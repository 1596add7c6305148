"""Models side by side: what differs, by how much, and which differences mean something.

The first model is the baseline. Every other is compared with it on the same samples, quantity by
quantity, and the p-values of one quantity are Holm-corrected over the models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robench.errors import UsageError
from robench.formatting import fixed, is_undefined, number, p_value, signed_interval
from robench.metric_catalogue import METRICS
from robench.reporting.differences import (
    Difference,
    common_attacks,
    differences,
    targeted_name,
)
from robench.reporting.export import csv_bytes
from robench.reporting.model_results import GroupKey, ModelResult
from robench.statistics import holm, smallest_difference
from robench.text import markdown


@dataclass(frozen=True)
class Comparison:
    """A baseline and others on the same samples."""

    baseline: str
    group: GroupKey
    level: float
    table: pd.DataFrame
    """One row a model and quantity; see :func:`compare_models`."""
    only_baseline: dict[str, list[str]]
    only_other: dict[str, list[str]]
    """By other model, the ids of samples that only one of the two resists in the worst case."""
    notes: tuple[str, ...]
    """What was left out and why."""


def compare_models(
    baseline: ModelResult, others: Sequence[ModelResult], *, level: float = 0.95
) -> Comparison:
    """Compare models with a baseline.

    Returns:
        A comparison whose table has columns ``model``, ``quantity``, ``baseline`` and ``value``
        (percent, or the metric's unit), ``difference`` (value − baseline), ``low``, ``high``,
        ``p`` (two-sided, exact McNemar for accuracies), ``p_holm``, ``n``, ``only_baseline`` and
        ``only_model`` (samples that only one gets right), ``detectable`` (the smallest true
        difference that this n shows with 80 % power; empty if none) and ``verdict``: ``better``,
        ``worse``, ``differs`` (no direction is better), ``not shown``, ``undefined``. Of models that
        were attacked with targets, accuracies under attack are of samples that are classified
        correctly and were not brought to theirs, and are called ``targeted_robust_acc`` and so on.

    Raises:
        UsageError: a model is of another group, has no attack in common, or there are no others.
    """
    if not others:
        raise UsageError("one model alone cannot be compared", hint="Name two or more")
    names = distinct_names([baseline, *others])
    notes: list[str] = []
    found: list[tuple[str, Difference]] = []
    only_baseline: dict[str, list[str]] = {}
    only_other: dict[str, list[str]] = {}
    for name, other in zip(names[1:], others, strict=True):
        one, two, left_out = common_attacks(other, baseline)
        notes += [note for note in left_out if note not in notes]
        found += [(name, item) for item in differences(one, two, level)]
        only_other[name] = list(one.sample_ids[one.robust & ~two.robust])
        only_baseline[name] = list(one.sample_ids[two.robust & ~one.robust])
    p_values = pd.Series([item.p for _, item in found])
    by_quantity = p_values.groupby([item.quantity for _, item in found])
    adjusted = by_quantity.transform(lambda values: holm(values.tolist()))
    targeted = baseline.threat_model.targets is not None
    rows = [
        _row(name, item, p_holm, 1 - level, targeted=targeted)
        for (name, item), p_holm in zip(found, adjusted.tolist(), strict=True)
    ]
    return Comparison(
        baseline=names[0],
        group=baseline.group,
        level=level,
        table=pd.DataFrame(rows),
        only_baseline=only_baseline,
        only_other=only_other,
        notes=tuple(notes),
    )


def comparison_csv(comparison: Comparison) -> bytes:
    """The table as UTF-8 CSV; numbers as :func:`comparison_markdown` shows them, with a digit
    more."""
    return csv_bytes(comparison.table, float_format="%.6g")


def comparison_markdown(comparison: Comparison) -> str:
    """A table a model, and a line on what n allows to say."""
    baseline = markdown(comparison.baseline)
    lines = [f"Baseline: **{baseline}** on {markdown(str(comparison.group))}", ""]
    for key, block in comparison.table.groupby("model", sort=False):
        name = markdown(str(key))
        lines += [
            f"### {name} against {baseline}",
            "",
            f"| quantity | {baseline} | {name} | difference "
            f"({comparison.level:.0%} interval) | p (Holm) | verdict |",
            "|---|---:|---:|---:|---:|---|",
        ]
        for row in block.to_dict("records"):
            digits = 1 if row["quantity"] not in METRICS else 3
            interval = signed_interval(row["difference"], row["low"], row["high"], digits)
            lines.append(
                f"| {row['quantity']} | {number(row['baseline'], digits)} "
                f"| {number(row['value'], digits)} | {interval} "
                f"| {p_value(row['p_holm'])} | {row['verdict']} |"
            )
        only_baseline = len(comparison.only_baseline[str(key)])
        only_other = len(comparison.only_other[str(key)])
        lines += [
            "",
            f"Samples that only {baseline} resists: {only_baseline}; only {name}: {only_other}.",
        ]
        quantities = ("robust_acc", targeted_name("robust_acc"))
        robust = block[block["quantity"].isin(quantities)].iloc[0]
        if is_undefined(robust["detectable"]):
            lines.append("At this n no difference of robust accuracy could have been shown.")
        else:
            lines.append(
                f"At n = {robust['n']} a true difference of robust accuracy of "
                f"{fixed(robust['detectable'], 1)} points or more is shown with 80 % power."
            )
        lines.append("")
    lines += [f"- {note}" for note in comparison.notes]
    return "\n".join(lines).rstrip() + "\n"


def _row(
    name: str, item: Difference, p_holm: float, alpha: float, *, targeted: bool
) -> dict[str, Any]:
    counts, detectable = item.counts, None
    if counts is not None and counts.n:
        detectable = smallest_difference(counts.n, counts.discordant / counts.n, alpha=alpha)
    return {
        "model": name,
        "quantity": targeted_name(item.quantity) if targeted else item.quantity,
        "baseline": item.second,
        "value": item.first,
        "difference": item.interval.estimate,
        "low": item.interval.low,
        "high": item.interval.high,
        "p": item.p,
        "p_holm": p_holm,
        "n": item.n,
        "only_baseline": None if counts is None else counts.only_second,
        "only_model": None if counts is None else counts.only_first,
        "detectable": math.nan if detectable is None else 100 * detectable,
        "verdict": _verdict(item, p_holm, alpha),
    }


def _verdict(item: Difference, p_holm: float, alpha: float) -> str:
    if not item.interval.defined or math.isnan(p_holm):
        return "undefined"
    if p_holm >= alpha:
        return "not shown"
    if item.better == "neutral":
        return "differs"
    return "worse" if item.loss.estimate > 0 else "better"


def distinct_names(results: Sequence[ModelResult]) -> list[str]:
    """The models' names; those of the same name with the start of their weights' sha256."""
    names = [result.model.name for result in results]
    return [
        name if names.count(name) == 1 else f"{name}@{result.model.weights_sha256[:8]}"
        for name, result in zip(names, results, strict=True)
    ]
