"""A model's metrics: over all samples, the broken and the survivors, and class by class.

A model may look at the object for most classes and at the background for one: a mean hides that.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robench.metric_catalogue import METRICS, columns_shown
from robench.records import Outcome
from robench.reporting.model_results import ModelResult, class_name
from robench.statistics import wilson


def attention_table(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One row a model and metric, for the attack that the model's metrics are reported for.

    Returns:
        Columns ``group``, ``model``, ``attack``, ``attention_method``, ``metric``, and ``mean``
        with ``n``, ``mean_broken`` with ``n_broken``, ``mean_survived`` with ``n_survived``: means
        over the samples that were classified correctly and for which the metric is defined, and
        how many those are. A mean over none is NaN. Metrics in the catalogue's order; models
        without metrics have no rows.
    """
    rows: list[tuple[Any, ...]] = []
    for result in results:
        attack = result.attention_attack
        if attack is None:
            continue
        record = result.attention_record
        about = (str(result.group), result.model.name, attack, record.attention_method)
        broken, survived = (
            result.outcome_is(attack, outcome) for outcome in (Outcome.BROKEN, Outcome.SURVIVED)
        )
        for name in METRICS:
            if name in record.metrics:
                values = result.reported(name)
                parts = (_mean(values[part]) for part in (broken | survived, broken, survived))
                rows.append((*about, name, *(number for part in parts for number in part)))
    columns = [
        *("group", "model", "attack", "attention_method", "metric", "mean", "n"),
        *("mean_broken", "n_broken", "mean_survived", "n_survived"),
    ]
    return pd.DataFrame(rows, columns=columns)


def class_table(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One row a model and class that has samples.

    Returns:
        Columns ``group``, ``model``, ``class``, ``n`` (its samples), ``clean_acc``,
        ``robust_acc`` (worst case over all attacks) with ``robust_acc_low`` and
        ``robust_acc_high`` (95 % Wilson), all in percent; ``attention_attack``, ``n_metrics``
        (correctly classified samples that the means are over, before undefined values are left
        out), the means of the metrics shown by class, NaN where undefined, and
        ``attention_empty``, the number of empty maps, NaN where the model has no maps; ``worst``:
        whether it is the model's class with the lowest robust accuracy (the lowest label among
        equals).
    """
    rows = [_class_row(result, label) for result in results for label in result.class_robust_acc]
    columns = [
        *("group", "model", "class", "n", "clean_acc", "robust_acc"),
        *("robust_acc_low", "robust_acc_high", "attention_attack", "n_metrics"),
        *columns_shown("by_class"),
        *("attention_empty", "worst"),
    ]
    return pd.DataFrame(rows, columns=columns)


def worst_classes(classes: pd.DataFrame) -> pd.DataFrame:
    """The class that comes off worst by robustness and by each metric, a row a model, from
    :func:`class_table`.

    Returns:
        Columns ``group``, ``model``, and for ``robust_acc`` and each metric shown by class
        the class (``robust_acc_class``) and its value (``robust_acc``): the smallest where more is
        better, else the largest, the first among equals; None and NaN where no class has one.
    """
    names = ("robust_acc", *columns_shown("by_class"))
    rows: list[dict[str, Any]] = []
    for (group, model), block in classes.groupby(["group", "model"], sort=False):
        row: dict[str, Any] = {"group": group, "model": model}
        for name in names:
            values = block[name].to_numpy(dtype=np.float64)
            if np.isnan(values).all():
                row |= {f"{name}_class": None, name: math.nan}
                continue
            higher = name not in METRICS or METRICS[name].direction == "higher"
            place = int(np.nanargmin(values) if higher else np.nanargmax(values))
            row |= {f"{name}_class": block["class"].iloc[place], name: float(values[place])}
        rows.append(row)
    columns = ["group", "model", *(part for name in names for part in (f"{name}_class", name))]
    return pd.DataFrame(rows, columns=columns)


def _class_row(result: ModelResult, label: int) -> dict[str, Any]:
    members = result.labels == label
    n = int(members.sum())
    robust = wilson(int(result.robust[members].sum()), n).scaled(100)
    chosen = members & result.judged
    means = {name: _mean(result.reported(name)[chosen])[0] for name in columns_shown("by_class")}
    empty = result.reported("attention_empty")[chosen]
    return {
        "group": str(result.group),
        "model": result.model.name,
        "class": class_name(result.dataset, label),
        "n": n,
        "clean_acc": 100 * float(result.clean_correct[members].mean()),
        "robust_acc": robust.estimate,
        "robust_acc_low": robust.low,
        "robust_acc_high": robust.high,
        "attention_attack": result.attention_attack,
        "n_metrics": int(chosen.sum()),
        **means,
        "attention_empty": math.nan if np.isnan(empty).all() else float(np.nansum(empty)),
        "worst": label == result.worst_class,
    }


def _mean(values: npt.NDArray[np.float64]) -> tuple[float, int]:
    """The mean of the defined values, and how many there are."""
    defined = values[~np.isnan(values)]
    return (float(defined.mean()) if len(defined) else math.nan), len(defined)
