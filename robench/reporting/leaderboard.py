"""The leaderboard: one row a model and threat model, from records alone.

**Robust accuracy** is the worst case sample by sample over all attacks; see
:mod:`robench.reporting.model_results`.

**Rank**: one more than the number of models in the same group whose 95 % interval lies wholly
above this one's. Models that n cannot tell apart so share a rank, and anyone can recompute the
ranks from the CSV's own columns. A group has one data set (fingerprint), one n, one seed and one
exact ε; ranks start again in each, unless asked otherwise. A model is not ranked while it has an
errored sample, lacks an attack that the others had, or met one with other parameters: its number
might flatter it.

**Validity** lists what speaks against the number: ``errored:3``, ``missing:autoattack``,
``differs:pgd-20`` (the attack's parameters are not those of the newest record of that name in
the group), ``unstable_clean:2`` (clean predictions that changed between attacks) and the records'
own flags as ``name(severity)``. Without any it reads ``no_flag_raised``, for that is all that can
be said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robench.errors import UsageError
from robench.files import atomic_write
from robench.formatting import is_undefined
from robench.metric_catalogue import METRICS, columns_shown
from robench.records import Suite
from robench.reporting.model_results import ModelResult, class_name, collect
from robench.results import RecordFilter, Store, StoredRecord

__all__ = [
    "NO_FLAG",
    "attack_column",
    "build_leaderboard",
    "leaderboard_csv",
    "read_leaderboard",
    "write_leaderboard",
]

NO_FLAG = "no_flag_raised"

_SPLITS = ("", "_broken", "_survived")
_HEAD = (
    "rank",
    "model",
    "defense",
    "architecture",
    "parameters",
    "dataset",
    "norm",
    "eps",
    "n",
    "seed",
    "robust_acc",
    "robust_acc_low",
    "robust_acc_high",
    "clean_acc",
)
_WORST = ("worst_class", "worst_class_robust_acc")
_TAIL = ("forwards", "backwards", "seconds", "validity", "weights_sha256", "data_sha256")
_WHOLE = ("rank", "parameters", "n", "seed", "forwards", "backwards")
_TEXT = (
    *("model", "defense", "architecture", "dataset", "norm", "eps", "worst_class"),
    *("attention_attack", "attention_method", "validity", "weights_sha256", "data_sha256"),
)
_PERCENT_DIGITS, _METRIC_DIGITS, _SECONDS_DIGITS = 2, 4, 1


def attack_column(attack: str) -> str:
    """The column of an attack: ``pgd-20`` → ``pgd_20_acc``.

    An attack called like a column that every leaderboard has gets ``attack_`` in front.
    """
    column = f"{attack.replace('-', '_')}_acc"
    return f"attack_{column}" if column in {*_HEAD, *_WORST} else column


def build_leaderboard(
    source: Store | Iterable[StoredRecord],
    wanted: RecordFilter | None = None,
    *,
    suite: Suite | None = None,
    together: bool = False,
) -> pd.DataFrame:
    """One row a model, best first within each group.

    Args:
        source: a store (damaged records are logged and left out) or records.
        wanted, suite: as for :func:`robench.reporting.model_results.collect`. With a suite, its
            attacks are the ones a model must have to be ranked; without, all that any model of
            its group has.
        together: rank all groups as one, although their numbers are not comparable.

    Returns:
        Accuracies in percent, rounded to 2 digits, metrics to 4; undefined is NaN or NA.

    Raises:
        UsageError: two attacks share a column.
    """
    records = source.records() if isinstance(source, Store) else source
    results = collect(records, wanted, suite=suite)
    groups: dict[Any, list[ModelResult]] = {}
    for result in results:
        groups.setdefault(None if together else result.group, []).append(result)
    rows: list[dict[str, Any]] = []
    for members in groups.values():
        rows += _ranked(members, suite)
    return _frame(rows)


def leaderboard_csv(frame: pd.DataFrame) -> bytes:
    """The table as UTF-8 CSV; the same table always gives the same bytes."""
    shown = {
        name: [_cell(value, _digits(name)) for value in frame[name].tolist()]
        for name in frame.columns
    }
    return (
        pd.DataFrame(shown, columns=frame.columns).to_csv(index=False, lineterminator="\n").encode()
    )


def write_leaderboard(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write :func:`leaderboard_csv` atomically.

    Raises:
        StoreError: the file cannot be written.
    """
    atomic_write(Path(path), leaderboard_csv(frame))
    return Path(path)


def read_leaderboard(path: str | Path) -> pd.DataFrame:
    """A leaderboard CSV as a table with the types of :func:`build_leaderboard`."""
    # Only the empty field is undefined: a model may well be called "NA".
    frame = pd.read_csv(
        path, dtype=dict.fromkeys(_TEXT, "str"), keep_default_na=False, na_values=[""]
    )
    return frame.astype(dict.fromkeys(_WHOLE, "Int64"))


def _ranked(members: list[ModelResult], suite: Suite | None) -> list[dict[str, Any]]:
    newest = _newest_identities(members)
    rows = []
    for result in members:
        required = (
            {
                name
                for other in members
                for name, stored in other.attacks.items()
                if not stored.record.attack.is_optional
            }
            if suite is None
            else {
                spec.name
                for spec in suite.for_norm(result.threat_model.norm)
                if not spec.is_optional
            }
        )
        rows.append(_row(result, required, newest))
    rankable = [row for row in rows if row["rank"] is not None]
    for row in rankable:
        # The limits as they are shown, so that the ranks follow from the CSV.
        row["rank"] = 1 + sum(other["_low"] > row["_high"] for other in rankable)
    rows.sort(
        key=lambda row: (-row["_robust"], -row["clean_acc"], row["model"], row["weights_sha256"])
    )
    return rows


def _row(
    result: ModelResult, required: set[str], newest: Mapping[tuple[Any, str], Any]
) -> dict[str, Any]:
    robust = result.robust_acc
    worst = result.worst_class
    missing = sorted(required - set(result.attacks))
    differs = [
        name
        for name, stored in result.attacks.items()
        if stored.record.attack.identity != newest[result.group, name]
    ]
    errored = int(result.errored.sum())
    row: dict[str, Any] = {
        "rank": None if missing or differs or errored else 0,
        "model": result.model.name,
        "defense": result.model.defense,
        "architecture": result.model.architecture,
        "parameters": result.model.parameters,
        "dataset": result.dataset.name,
        "norm": result.threat_model.norm,
        "eps": result.threat_model.written,
        "n": result.n,
        "seed": result.group.seed,
        "robust_acc": robust.estimate,
        "robust_acc_low": robust.low,
        "robust_acc_high": robust.high,
        "clean_acc": result.clean_acc.estimate,
        "worst_class": class_name(result.dataset, worst),
        "worst_class_robust_acc": result.class_robust_acc[worst],
        "forwards": sum(s.record.cost.forwards for s in result.attacks.values()),
        "backwards": sum(s.record.cost.backwards for s in result.attacks.values()),
        "seconds": sum(s.record.cost.seconds for s in result.attacks.values()),
        "validity": ";".join(_validity(result, missing, differs, errored)) or NO_FLAG,
        "weights_sha256": result.model.weights_sha256,
        "data_sha256": result.group.fingerprint,
        "_robust": robust.estimate,
        "_low": round(robust.low, _PERCENT_DIGITS),
        "_high": round(robust.high, _PERCENT_DIGITS),
    }
    for attack in result.attacks:
        column = attack_column(attack)
        if column in row:
            raise UsageError(f"two attacks share the column {column!r}", where=result.model.id)
        row[column] = result.attack_acc(attack).estimate
    shown = result.attention_attack
    if shown is not None:
        record = result.attacks[shown].record
        row["attention_attack"] = shown
        row["attention_method"] = record.attention_method
        for name in columns_shown("leaderboard"):
            if (summary := record.metrics.get(name)) is not None:
                row[name] = summary.mean
                row[f"{name}_broken"] = summary.mean_broken
                row[f"{name}_survived"] = summary.mean_survived
    return row


def _validity(
    result: ModelResult, missing: list[str], differs: list[str], errored: int
) -> list[str]:
    notes = [f"errored:{errored}"] if errored else []
    notes += [f"missing:{name}" for name in missing]
    notes += [f"differs:{name}" for name in differs]
    predictions = [result.column(name, "clean_prediction") for name in result.attacks]
    known = np.stack(predictions)
    first = np.where(np.isnan(known), np.inf, known).min(axis=0)
    last = np.where(np.isnan(known), -np.inf, known).max(axis=0)
    if unstable := int((last > first).sum()):
        notes.append(f"unstable_clean:{unstable}")
    flags = {
        f"{flag.name}({flag.severity})"
        for stored in result.attacks.values()
        for flag in stored.record.flags
    }
    return notes + sorted(flags)


def _newest_identities(members: list[ModelResult]) -> dict[tuple[Any, str], Any]:
    newest: dict[tuple[Any, str], StoredRecord] = {}
    for result in members:
        for name, stored in result.attacks.items():
            rival = newest.get((result.group, name))
            if rival is None or rival.record.created < stored.record.created:
                newest[result.group, name] = stored
    return {key: stored.record.attack.identity for key, stored in newest.items()}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    present = {name for row in rows for name in row}
    metrics = [f"{name}{split}" for name in columns_shown("leaderboard") for split in _SPLITS]
    fixed = {*_HEAD, *_TAIL, *_WORST, *metrics}
    attacks = sorted(name for name in present - fixed if name.endswith("_acc"))
    columns = [*_HEAD, *attacks, *_WORST]
    if "attention_attack" in present:
        columns += ["attention_attack", "attention_method"]
        columns += [name for name in metrics if any(row.get(name) is not None for row in rows)]
    columns += _TAIL
    data: dict[str, Any] = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        digits = _digits(name)
        if name in _WHOLE:
            data[name] = pd.array(values, dtype="Int64")
        elif digits is not None:
            data[name] = np.array(
                [math.nan if v is None else round(float(v), digits) for v in values]
            )
        else:
            data[name] = pd.array(values, dtype="str")
    return pd.DataFrame(data)


def _digits(column: str) -> int | None:
    base = column.removesuffix("_broken").removesuffix("_survived")
    if base in METRICS:
        return _METRIC_DIGITS
    if column == "seconds":
        return _SECONDS_DIGITS
    if "_acc" in column:
        return _PERCENT_DIGITS
    return None


def _cell(value: Any, digits: int | None) -> str:
    if is_undefined(value):
        return ""
    # Adding 0 turns −0.0 into 0.0.
    return str(value) if digits is None else f"{value + 0.0:.{digits}f}"
