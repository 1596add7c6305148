"""How often an adversary with targets reaches them, by model and attack, and class by class.

Counted are samples whose label is not their target. Of these a model may misclassify some without an
attack; they are not attacked, whatever class they are taken for. **Success** is the share of the
attacked, those that were classified correctly and have a verdict, that were brought to their target:
the prediction is the target, as the float32 adjudicator saw it. Where every wrong class was tried in
turn, a sample counts once one of them was reached, and **pair success** is over all (sample, target)
pairs: the best and the average case of Carlini & Wagner (IEEE S&P 2017). Elsewhere a sample has one
target and the two agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robench.records import REACHED, Outcome
from robench.reporting.leaderboard import validity
from robench.reporting.model_results import ModelResult, by_group, class_name
from robench.statistics import wilson
from robench.threat_models import class_number

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

ANY = "any"
"""In place of an attack: what one of them reached counts."""

_MOST_CLASSES = 100
"""Up to which the matrix has a row for pairs of classes that no sample had, too"""

_COLUMNS = [
    *("group", "model", "defense", "targets", "attack", "n", "attacked", "reached"),
    *("targeted_success", "targeted_success_low", "targeted_success_high", "pair_success"),
    *("targeted_robust_acc", "clean_acc", "validity"),
]
_PAIR_COLUMNS = [
    *("group", "model", "class", "target", "attacked", "reached"),
    *("targeted_success", "targeted_success_low", "targeted_success_high"),
]


@dataclass(frozen=True)
class TargetCounts:
    """Of each (true class, target class), both (K, K): searches, and those that reached it."""

    attacked: Counts
    reached: Counts


def targets_name(result: ModelResult) -> str:
    """The rule, or the class that all samples were to be taken for, as people call it."""
    number = class_number(result.threat_model.targets)
    return str(
        result.threat_model.targets if number is None else class_name(result.dataset, number)
    )


def target_verdicts(result: ModelResult, attack: str | None = None) -> Floats:
    """(n, K): 1 where a sample was brought to a class, 0 where not, NaN where that was not tried or
    has no verdict; under one attack, or where None is given under any."""
    if attack is None:
        each = np.stack([target_verdicts(result, name) for name in result.protocol])
        found = (each == 1).any(axis=0)
        return np.where(found, 1.0, np.where(np.isnan(each).any(axis=0), np.nan, 0.0))
    classes = result.dataset.num_classes
    if result.threat_model.targets == "all":
        return np.stack([result.column(attack, f"{REACHED}{c}") for c in range(classes)], axis=1)
    verdicts = np.full((result.n, classes), np.nan)
    broken = result.outcome_is(attack, Outcome.BROKEN)
    rows = np.flatnonzero(broken | result.outcome_is(attack, Outcome.SURVIVED))
    verdicts[rows, result.column(attack, "target")[rows].astype(np.int64)] = broken[rows]
    return verdicts


def target_counts(result: ModelResult, attack: str | None = None) -> TargetCounts:
    """The verdicts by true class and target, under one attack, or where None is given under any."""
    verdicts = target_verdicts(result, attack)
    shape = (result.dataset.num_classes,) * 2
    attacked, reached = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    np.add.at(attacked, result.labels, (~np.isnan(verdicts)).astype(np.int64))
    np.add.at(reached, result.labels, (verdicts == 1).astype(np.int64))
    return TargetCounts(attacked, reached)


def targeted_table(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One row a model and attack, and one for what any of a model's attacks reached, ``any``.

    Returns:
        Columns ``group``, ``model``, ``defense``, ``targets``, ``attack``; ``n``, the samples whose
        label is not the target; ``attacked`` of them, and ``reached`` of these;
        ``targeted_success`` = reached / attacked with its 95 % Wilson interval; ``pair_success``;
        ``targeted_robust_acc``, the share of n that is classified correctly and was not brought to
        its target; ``clean_acc``, of n as well; ``validity`` as in the leaderboard. Rates in percent, NaN
        over no sample. In each group the model on top that is reached least.
    """
    rows: list[dict[str, Any]] = []
    for members in by_group(results).values():
        blocks = [
            [_row(result, attack) for attack in (None, *result.attacks)] for result in members
        ]
        rows += [row for block in sorted(blocks, key=_least_reached) for row in block]
    return pd.DataFrame(rows, columns=_COLUMNS)


def _least_reached(block: list[dict[str, Any]]) -> tuple[float, str]:
    success = block[0]["targeted_success"]
    return (np.inf if np.isnan(success) else success), block[0]["model"]


def _row(result: ModelResult, attack: str | None) -> dict[str, Any]:
    verdicts = target_verdicts(result, attack)
    names = result.protocol if attack is None else [attack]
    reached = np.any([result.outcome_is(name, Outcome.BROKEN) for name in names], axis=0)
    stood = np.all([result.outcome_is(name, Outcome.SURVIVED) for name in names], axis=0)
    attacked = int((reached | stood).sum())
    success = wilson(int(reached.sum()), attacked).scaled(100)
    pairs = ~np.isnan(verdicts)
    pair_success = 100 * float((verdicts == 1).sum() / pairs.sum()) if pairs.any() else np.nan
    robust = wilson(int(stood.sum()), result.n).scaled(100)
    return {
        "group": str(result.group),
        "model": result.model.name,
        "defense": result.model.defense,
        "targets": targets_name(result),
        "attack": ANY if attack is None else attack,
        "n": result.n,
        "attacked": attacked,
        "reached": int(reached.sum()),
        "targeted_success": success.estimate,
        "targeted_success_low": success.low,
        "targeted_success_high": success.high,
        "pair_success": pair_success,
        "targeted_robust_acc": robust.estimate,
        "clean_acc": result.clean_acc.estimate,
        "validity": validity(result.restricted(names)),
    }


def target_matrix(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One row a model, true class and target class: how often any attack led from one to the other.

    Returns:
        Columns ``group``, ``model``, ``class``, ``target``, ``attacked`` (samples of the class that
        were to be taken for the target), ``reached`` of them, ``targeted_success`` in percent with
        its 95 % Wilson interval, NaN over no sample. True classes and targets are those that the
        records have; of data with more than 100 classes only pairs that were tried.
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        counts = target_counts(result)
        tried = counts.attacked > 0
        if result.dataset.num_classes <= _MOST_CLASSES:
            tried = np.outer(tried.any(axis=1), tried.any(axis=0))
        for label, target in np.argwhere(tried).tolist():
            attacked, reached = (int(c[label, target]) for c in (counts.attacked, counts.reached))
            share = wilson(reached, attacked).scaled(100)
            rows.append(
                {
                    "group": str(result.group),
                    "model": result.model.name,
                    "class": class_name(result.dataset, label),
                    "target": class_name(result.dataset, target),
                    "attacked": attacked,
                    "reached": reached,
                    "targeted_success": share.estimate,
                    "targeted_success_low": share.low,
                    "targeted_success_high": share.high,
                }
            )
    return pd.DataFrame(rows, columns=_PAIR_COLUMNS)


def easiest_pairs(matrix: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """Of :func:`target_matrix`, each model's pairs of classes that were led across most often."""
    reached = matrix[matrix["reached"] > 0]
    ordered = reached.sort_values(["targeted_success", "attacked"], ascending=False, kind="stable")
    return ordered.groupby(["group", "model"], sort=False).head(count).sort_index()
