"""Accuracy on corrupted samples, by corruption and severity.

Nobody searches for the worst of these images, so accuracy is a mean: a sample counts as large a share as
it is classified correctly in, whether or not it is correct as it is. ``corruptions_acc`` is the plain
mean over the fifteen corruptions of the benchmark and five severities; without one of these there is
none. Its interval is over samples, each with all its images: those of one sample are not independent.
mCE (Hendrycks & Dietterich, ICLR 2019) is the mean over corruptions of the error, relative to AlexNet's,
and defined on ImageNet alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robench.records.corruptions import (
    ALEXNET_ERRORS,
    BENCHMARK,
    CORRECT,
    FURTHER,
    SEVERITIES,
    trial_name,
)
from robench.reporting.leaderboard import validity
from robench.reporting.model_results import ModelResult, by_group
from robench.statistics import Interval, bootstrap_mean

Floats = npt.NDArray[np.float64]

CORRUPTIONS_ACC = "corruptions_acc"

_HEAD = ["group", "model", "defense", "attack", "n", CORRUPTIONS_ACC]
_HEAD += ["corruptions_acc_low", "corruptions_acc_high", "mce", "clean_acc"]
_SEVERITIES = [f"severity_{severity}_acc" for severity in SEVERITIES]
_CORRUPTIONS = [f"{name}_acc" for name in (*BENCHMARK, *FURTHER)]


def trial_verdicts(result: ModelResult, attack: str) -> dict[str, Floats]:
    """By corruption (n, 5), in percent by severity: 100 where a corrupted sample is classified
    correctly, 0 where it is not or the model failed. What was not tried is absent."""
    columns = {
        name: [
            result.column(attack, f"{CORRECT}{trial_name(name, severity)}")
            for severity in SEVERITIES
        ]
        for name in (*BENCHMARK, *FURTHER)
    }
    return {
        name: 100 * np.nan_to_num(np.stack(found, axis=1))
        for name, found in columns.items()
        if all((~np.isnan(column)).any() for column in found)
    }


def main_attack(result: ModelResult) -> str:
    """The entry that a result's figures are given for, where there are several."""
    return "corruptions" if "corruptions" in result.attacks else result.protocol[0]


def corruption_shares(result: ModelResult, attack: str) -> dict[str, Floats]:
    """Columns of the table by name, (n,) each in percent of a sample's images: of the benchmark, of
    each severity, of each corruption. What is undefined is absent."""
    verdicts = trial_verdicts(result, attack)
    found: dict[str, Floats] = {}
    if set(BENCHMARK) <= verdicts.keys():
        benchmark = np.stack([verdicts[name] for name in BENCHMARK])
        found[CORRUPTIONS_ACC] = benchmark.mean(axis=(0, 2))
        by_severity = benchmark.mean(axis=0).T
        found |= dict(zip(_SEVERITIES, by_severity, strict=True))
    return found | {f"{name}_acc": each.mean(axis=1) for name, each in verdicts.items()}


def corruptions_acc(result: ModelResult) -> Interval:
    """Percent, with its 95 % bootstrap interval over samples; NaN where a corruption is lacking."""
    shares = corruption_shares(result, main_attack(result))
    return bootstrap_mean(shares.get(CORRUPTIONS_ACC, np.full(result.n, np.nan)))


def mean_corruption_error(result: ModelResult, shares: Mapping[str, Floats]) -> float:
    """mCE in percent of AlexNet's errors; NaN but on ImageNet with the whole benchmark."""
    data = result.dataset
    of_imagenet = data.num_classes == 1000 and data.name.lower().startswith("imagenet")
    if not of_imagenet or CORRUPTIONS_ACC not in shares:
        return np.nan
    errors = {name: 100 - float(shares[f"{name}_acc"].mean()) for name in BENCHMARK}
    return float(np.mean([errors[name] / ALEXNET_ERRORS[name] for name in BENCHMARK]))


def corruption_table(results: Sequence[ModelResult]) -> pd.DataFrame:
    """One row a model and entry, in each group the most accurate first.

    Returns:
        Columns ``group``, ``model``, ``defense``, ``attack``, ``n``; ``corruptions_acc`` with its 95 %
        interval; ``mce`` on ImageNet; ``clean_acc``; ``severity_1_acc`` to ``severity_5_acc``, means over
        the benchmark; one for each corruption that some model has, its mean over severities;
        ``robust_acc``, correct as it is and under every corruption and severity; ``validity`` as in the
        leaderboard. All but n in percent with two digits, NaN where undefined.
    """
    rows: list[dict[str, Any]] = []
    for members in by_group(results).values():
        own = [_row(result, attack) for result in members for attack in result.attacks]
        rows += sorted(own, key=lambda r: (-np.nan_to_num(r[CORRUPTIONS_ACC], nan=-1), r["model"]))
    met = [name for name in _CORRUPTIONS if any(name in row for row in rows)]
    head = [
        name for name in _HEAD if name != "mce" or any(row["mce"] == row["mce"] for row in rows)
    ]
    columns = [*head, *_SEVERITIES, *met, "robust_acc", "validity"]
    return pd.DataFrame(rows, columns=columns).round(2)


def _row(result: ModelResult, attack: str) -> dict[str, Any]:
    shares = corruption_shares(result, attack)
    whole = bootstrap_mean(shares.get(CORRUPTIONS_ACC, np.full(result.n, np.nan)))
    return {
        "group": str(result.group),
        "model": result.model.name,
        "defense": result.model.defense,
        "attack": attack,
        "n": result.n,
        CORRUPTIONS_ACC: whole.estimate,
        "corruptions_acc_low": whole.low,
        "corruptions_acc_high": whole.high,
        "mce": mean_corruption_error(result, shares),
        "clean_acc": result.clean_acc.estimate,
        **{
            name: float(values.mean()) for name, values in shares.items() if name != CORRUPTIONS_ACC
        },
        "robust_acc": result.attack_acc(attack).estimate,
        "validity": validity(result.restricted([attack])),
    }
