"""Every metric of a model's attention and features: over all samples, the broken, the survivors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from robench.metric_catalogue import METRICS
from robench.records import Outcome
from robench.reporting.model_results import ModelResult

__all__ = ["attention_table"]

_PARTS = ("", "_broken", "_survived")


def attention_table(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One row a model and metric, for the attack that the model's metrics are reported for.

    Returns:
        Columns ``group``, ``model``, ``attack``, ``attention_method``, ``metric``, and ``mean``
        with ``n``, ``mean_broken`` with ``n_broken``, ``mean_survived`` with ``n_survived``: means
        over the samples that were classified correctly and for which the metric is defined, and
        how many those are. A mean over none is NaN. Metrics in the catalogue's order; models
        without metrics have no rows.
    """
    rows: list[dict[str, Any]] = []
    for result in results:
        attack = result.attention_attack
        if attack is None:
            continue
        record = result.attacks[attack].record
        chosen = (
            result.judged(attack),
            result.outcome_is(attack, Outcome.BROKEN),
            result.outcome_is(attack, Outcome.SURVIVED),
        )
        for name in METRICS:
            if name not in record.metrics:
                continue
            row: dict[str, Any] = {
                "group": str(result.group),
                "model": result.model.name,
                "attack": attack,
                "attention_method": record.attention_method,
                "metric": name,
            }
            values = result.column(attack, name)
            for suffix, members in zip(_PARTS, chosen, strict=True):
                defined = values[members & ~np.isnan(values)]
                row[f"mean{suffix}"] = float(defined.mean()) if len(defined) else math.nan
                row[f"n{suffix}"] = len(defined)
            rows.append(row)
    numbers = [f"{kind}{suffix}" for suffix in _PARTS for kind in ("mean", "n")]
    columns = ["group", "model", "attack", "attention_method", "metric", *numbers]
    return pd.DataFrame(rows, columns=columns)
