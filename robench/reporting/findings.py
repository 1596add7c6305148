"""What attention and features have to do with robustness: published observations, tested.

Wu, Sang et al. (arXiv 1811.09831) observed that (1) images whose clean attention is incomplete
are broken more often, and (2) successful attacks make attention deviate and scatter. Each is put
as a question about two groups of correctly classified samples, broken and survived, and answered
with an effect size, its interval and a p-value, corrected (Holm) over the models asked. An
observation that does not hold is reported like one that does.

Zhou et al. (ANCRA, arXiv 2310.03358) hold that robust models have features that an attack moves
little (alignment) and that stay far from other classes' (exclusion). That is a question about
models, answered with a rank correlation over those at hand, which are few: see the interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from robench.records import Outcome
from robench.reporting.model_results import ModelResult, by_group
from robench.statistics import holm, mann_whitney, rank_correlation

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """One observation, as data."""

    name: str
    metric: str
    """The per-sample column that it is about."""
    sign: Literal[-1, 1]
    """Of broken samples' values against survivors'."""
    claim: str


QUESTIONS = (
    Question(
        "incomplete_attention",
        "attention_coverage_clean",
        -1,
        "clean attention of broken samples covers less of the object",
    ),
    Question("deviation", "attention_deviation", 1, "attention of broken samples deviates more"),
    Question(
        "scatter", "attention_scatter_increase", 1, "attention of broken samples scatters more"
    ),
)

_COLUMNS = [
    *("group", "model", "attack", "finding", "metric", "n_broken", "n_survived"),
    *("median_broken", "median_survived", "auc", "auc_low", "auc_high", "rank_biserial"),
    *("p", "p_holm", "verdict"),
]

_EXPECTED_SIGN = {"alignment": -1, "exclusion": 1}
"""How a metric's mean should go with robust accuracy: alignment is a distance."""

_VERDICTS = ("holds", "reversed", "not shown", "undefined")


def broken_and_survived(result: ModelResult, metric: str) -> tuple[Floats, Floats]:
    """A metric's defined values among broken and among surviving samples, of a model with
    metrics."""
    values, attack = result.reported(metric), result.attention_attack or ""
    defined = ~np.isnan(values)
    broken, survived = (
        values[defined & result.outcome_is(attack, outcome)]
        for outcome in (Outcome.BROKEN, Outcome.SURVIVED)
    )
    return broken, survived


def attention_findings(results: Sequence[ModelResult], *, level: float = 0.95) -> pd.DataFrame:
    """One row a model and question, group by group.

    Returns:
        Columns ``group``, ``model``, ``attack``, ``finding``, ``metric``, ``n_broken``,
        ``n_survived``, ``median_broken``, ``median_survived``, ``auc`` (chance that a broken
        sample's value is the larger), ``auc_low``, ``auc_high``, ``rank_biserial``, ``p``,
        ``p_holm`` (over the group's models, for each question) and ``verdict``: ``holds``,
        ``reversed``, ``not shown`` or ``undefined`` where a group is empty. Models without
        metrics have no rows.
    """
    rows: list[dict[str, Any]] = []
    for members in by_group(results).values():
        for question in QUESTIONS:
            rows += _answers(question, members, level)
    return pd.DataFrame(rows, columns=_COLUMNS)


def representation_findings(results: Sequence[ModelResult], *, level: float = 0.95) -> pd.DataFrame:
    """Whether robust accuracy goes with a model's mean alignment and exclusion, group by group.

    Returns:
        One row a group and metric: ``group``, ``metric``, ``models`` (how many have it),
        ``spearman`` with ``low`` and ``high``, ``p``, ``p_holm`` (over the metrics) and
        ``verdict`` as for :func:`attention_findings`.
    """
    rows = []
    for group, members in by_group(results).items():
        robust = [result.robust_acc.estimate for result in members]
        found = {
            metric: rank_correlation([r.metric_mean(metric) for r in members], robust, level)
            for metric in _EXPECTED_SIGN
        }
        adjusted = holm([item.p_value for item in found.values()])
        for (metric, item), p in zip(found.items(), adjusted, strict=True):
            rho = item.rho
            verdict = _verdict(_EXPECTED_SIGN[metric] * rho.estimate > 0, p, 1 - level)
            numbers = (item.n, rho.estimate, rho.low, rho.high, item.p_value, p)
            rows.append((str(group), metric, *numbers, verdict))
    columns = ["group", "metric", "models", "spearman", "low", "high", "p", "p_holm", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def attention_sentences(findings: pd.DataFrame) -> list[str]:
    """For which models each observation holds and for which not, from :func:`attention_findings`:
    a sentence a group and question."""
    sentences = []
    for question in QUESTIONS:
        asked = findings[findings["finding"] == question.name]
        for group, block in asked.groupby("group", sort=False):
            parts = []
            for verdict in _VERDICTS:
                models = block["model"][block["verdict"] == verdict].tolist()
                if models:
                    parts.append(f"{verdict} for {len(models)} ({', '.join(models)})")
            sentences.append(
                f"{group}: “{question.claim}”, of {len(block)} models: {'; '.join(parts)}."
            )
    return sentences


def association_sentences(associations: pd.DataFrame) -> list[str]:
    """Whether models with better features are more robust, from :func:`representation_findings`:
    a sentence a group and metric."""
    sentences = []
    for row in associations.to_dict("records"):
        wanted = "lower" if _EXPECTED_SIGN[row["metric"]] < 0 else "higher"
        rho = "" if math.isnan(row["spearman"]) else f" (Spearman {row['spearman']:.2f})"
        sentences.append(
            f"{row['group']}: “models with {wanted} {row['metric']} are more robust”, "
            f"of {row['models']} models: {row['verdict']}{rho}."
        )
    return sentences


def _answers(
    question: Question, members: Sequence[ModelResult], level: float
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for result in members:
        attack = result.attention_attack
        if attack is None:
            continue
        broken, survived = broken_and_survived(result, question.metric)
        found = mann_whitney(broken, survived, level)
        about = (str(result.group), result.model.name, attack, question.name, question.metric)
        counts = (found.n_first, found.n_second, _median(broken), _median(survived))
        effect = (found.auc.estimate, found.auc.low, found.auc.high, found.rank_biserial)
        values = (*about, *counts, *effect, found.p_value)
        rows.append(dict(zip(_COLUMNS, values, strict=False)))
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        agrees = question.sign * (row["auc"] - 0.5) > 0
        row |= {"p_holm": p, "verdict": _verdict(agrees, p, 1 - level)}
    return rows


def _median(values: Floats) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _verdict(agrees: bool, p: float, alpha: float) -> str:
    if math.isnan(p):
        return "undefined"
    if p >= alpha:
        return "not shown"
    return "holds" if agrees else "reversed"
