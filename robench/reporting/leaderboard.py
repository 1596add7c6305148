"""The leaderboard: one row a model and threat model, from records alone.

**Robust accuracy** is the worst case sample by sample over all attacks; see
:mod:`robench.reporting.model_results`. **Best known** counts what any record of the folder has
broken, at whatever radius within this one, also inputs that were made elsewhere; **verified**, where
bounds of the model are kept, what nothing can break. See :mod:`robench.reporting.best_known`. Where a
model was validated, **validated** is the verdict,
``stands``, ``lowered`` or ``unreliable``, and **unreliable** names what masks an unreliable number's
gradients.

**Rank**: one more than the number of models in the same group whose 95 % interval lies wholly
above this one's. Models that n cannot tell apart so share a rank, and anyone can recompute the
ranks from the CSV's own columns. A group has one data set (fingerprint), one n, one seed and one
exact ε; ranks start again in each, unless asked otherwise. A model is not ranked while it has an
errored sample, lacks an attack that the others had, or met one with other parameters: its number
might flatter it.

**Validity** lists what speaks against the number: ``errored:3``, ``missing:autoattack``,
``differs:pgd-20`` (the attack's parameters are not those of the newest record of that name in
the group), ``judged_only`` (inputs from elsewhere, and no attack that robench ran),
``unstable_clean:2`` (clean predictions that changed between attacks) and the records' own flags as
``name(severity)``. Without any it reads ``no_flag_raised``, for that is all that can
be said.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from robench.errors import UsageError
from robench.files import read_bytes
from robench.formatting import fixed, is_undefined, rounded
from robench.metric_catalogue import METRICS, columns_shown
from robench.records import Bounds, Suite, Validation
from robench.reporting.best_known import BestKnown
from robench.reporting.export import csv_bytes
from robench.reporting.model_results import ModelResult, by_group, class_name, collect
from robench.results import RecordFilter, Store, StoredRecord
from robench.results.validations import ERRORED
from robench.text import uncell

NO_FLAG = "no_flag_raised"

_Kind = Literal["text", "whole", "percent", "metric", "seconds"]
_DIGITS: dict[_Kind, int] = {"percent": 2, "metric": 4, "seconds": 1}


@dataclass(frozen=True)
class _Column:
    """A column that every leaderboard has, and a model's value in it."""

    name: str
    kind: _Kind
    of: Callable[[ModelResult], Any] = lambda _: None


def _cost(name: str) -> Callable[[ModelResult], Any]:
    return lambda result: sum(getattr(s.record.cost, name) for s in result.attacks.values())


_HEAD = (
    _Column("rank", "whole"),
    _Column("model", "text", lambda result: result.model.name),
    _Column("defense", "text", lambda result: result.model.defense),
    _Column("architecture", "text", lambda result: result.model.architecture),
    _Column("parameters", "whole", lambda result: result.model.parameters),
    _Column("dataset", "text", lambda result: result.dataset.name),
    _Column("norm", "text", lambda result: result.threat_model.family),
    _Column("eps", "text", lambda result: result.threat_model.written),
    _Column("n", "whole", lambda result: result.n),
    _Column("seed", "whole", lambda result: result.group.seed),
    _Column("robust_acc", "percent", lambda result: result.robust_acc.estimate),
    _Column("robust_acc_low", "percent", lambda result: result.robust_acc.low),
    _Column("robust_acc_high", "percent", lambda result: result.robust_acc.high),
    _Column("best_known_acc", "percent"),
    _Column("verified_acc", "percent"),
    _Column("validated", "text"),
    _Column("unreliable", "text"),
    _Column("clean_acc", "percent", lambda result: result.clean_acc.estimate),
)
_WORST = (
    _Column("worst_class", "text", lambda r: class_name(r.dataset, r.worst_class)),
    _Column("worst_class_robust_acc", "percent", lambda r: r.class_robust_acc[r.worst_class]),
)
_AUDIT = (_Column("audit_missed", "percent", lambda result: result.audit_missed),)
_ATTENTION = (
    _Column("attention_attack", "text", lambda result: result.attention_attack),
    _Column("attention_method", "text", lambda r: r.attention_record.attention_method),
)
_TAIL = (
    _Column("forwards", "whole", _cost("forwards")),
    _Column("backwards", "whole", _cost("backwards")),
    _Column("seconds", "seconds", _cost("seconds")),
    _Column("validity", "text"),
    _Column("weights_sha256", "text", lambda result: result.model.weights_sha256),
    _Column("data_sha256", "text", lambda result: result.group.fingerprint),
)
_ALL = (*_HEAD, *_AUDIT, *_WORST, *_ATTENTION, *_TAIL)
_KINDS = {column.name: column.kind for column in _ALL}
_WHERE_KNOWN = ("verified_acc", "validated", "unreliable")
"""Columns of the head that are there only where a row has a value in them"""


def attack_column(attack: str) -> str:
    """The column of an attack: ``pgd-20`` → ``pgd_20_acc``.

    An attack called like a column that every leaderboard has gets ``attack_`` in front.
    """
    column = f"{attack.replace('-', '_')}_acc"
    return f"attack_{column}" if column in _KINDS else column


def build_leaderboard(
    source: Store | Iterable[StoredRecord],
    wanted: RecordFilter | None = None,
    *,
    suite: Suite | None = None,
    together: bool = False,
    known: Iterable[StoredRecord] | None = None,
    bounds: Iterable[Bounds] = (),
    validations: Iterable[Validation] = (),
) -> pd.DataFrame:
    """One row a model, best first within each group.

    Args:
        source: a store (damaged records are logged and left out) or records.
        wanted, suite: as for :func:`robench.reporting.model_results.collect`. To be ranked a model
            must have the suite's attacks, or without one all that any model of its group has.
        together: rank all groups as one, although their numbers are not comparable.
        known: the records that the best known accuracies are taken from; None: all of ``source``,
            also what ``wanted`` and ``suite`` leave out.
        bounds: the bounds that the verified accuracies are taken from.
        validations: what is known of what numbers are worth; see :func:`validation_of`.

    Returns:
        Accuracies in percent, not rounded (:func:`as_written` does); undefined is NaN or NA. What was
        attacked with targets is not here but in :mod:`robench.reporting.targeted`.

    Raises:
        UsageError: two attacks share a column.
        ContradictionError: a sample is verified and broken at once.
    """
    records = list(source.records() if isinstance(source, Store) else source)
    results = [
        r for r in collect(records, wanted, suite=suite) if r.threat_model.goal == "untargeted"
    ]
    groups = [results] if together else by_group(results).values()
    best = BestKnown(records if known is None else known, bounds)
    judged = list(validations)
    rows = [row for members in groups for row in _ranked(members, suite, best, judged)]
    return _frame(rows)


def validation_of(result: ModelResult, validations: Iterable[Validation]) -> Validation | None:
    """The validation of a result: all of whose records are among the result's, of several the one of
    most records, of equals the newest."""
    held = {stored.record.key for stored in result.attacks.values()}
    fitting = [item for item in validations if held.issuperset(item.base)]
    return max(fitting, key=lambda v: (len(v.base), v.created, v.key), default=None)


def with_clean_points(frame: pd.DataFrame, records: Iterable[StoredRecord]) -> pd.DataFrame:
    """The board of runs at several radii, each model's clean accuracy before them as its eps 0.

    No attack is made at 0, and no record kept: ``robust_acc`` is what the records of the smallest
    radius say of the clean samples. Such a row has no rank and no attacks, and its validity is
    ``clean``.
    """
    first: dict[Any, ModelResult] = {}
    for result in collect(records):
        group = result.group
        key = (group.dataset, group.norm, group.n, group.fingerprint, group.seed)
        first.setdefault((*key, result.model.name, result.model.fingerprint), result)
    rows = []
    for result in first.values():
        row = {column.name: column.of(result) for column in (*_HEAD, *_TAIL)}
        low, high = result.clean_acc.low, result.clean_acc.high
        row |= {"eps": "0", "robust_acc": row["clean_acc"], "validity": "clean"}
        row |= {"robust_acc_low": low, "robust_acc_high": high}
        rows.append(row | dict.fromkeys(("forwards", "backwards", "seconds")))
    clean = _frame(rows).reindex(columns=frame.columns)
    clean = clean.sort_values("clean_acc", ascending=False, kind="stable")
    return pd.concat([clean.astype(frame.dtypes), frame], ignore_index=True)


def as_written(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its numbers as the CSV has them: accuracies with 2 digits, metrics with 4."""
    written = {
        name: [v if is_undefined(v) else rounded(v, _DIGITS[_kind(name)]) for v in frame[name]]
        for name in frame.columns
        if _kind(name) in _DIGITS
    }
    return frame.assign(**{name: np.array(values, float) for name, values in written.items()})


def leaderboard_csv(frame: pd.DataFrame) -> bytes:
    """The table as UTF-8 CSV; the same table always gives the same bytes."""
    shown = {
        name: [_cell(value, _DIGITS.get(_kind(name))) for value in frame[name].tolist()]
        for name in frame.columns
    }
    return csv_bytes(pd.DataFrame(shown, columns=frame.columns))


def read_leaderboard(path: str | Path) -> pd.DataFrame:
    """A leaderboard CSV as a table with the types of :func:`build_leaderboard`."""
    text = {name: "str" for name, kind in _KINDS.items() if kind == "text"}
    whole = {name: "Int64" for name, kind in _KINDS.items() if kind == "whole"}
    # Only the empty field is undefined: a model may well be called "NA".
    content = io.BytesIO(read_bytes(Path(path)))  # pandas would fetch an address, too
    frame = pd.read_csv(content, dtype=text, keep_default_na=False, na_values=[""])
    names = {name: frame[name].map(uncell, na_action="ignore") for name in text if name in frame}
    return frame.assign(**names).astype(whole)


def _ranked(
    members: list[ModelResult],
    suite: Suite | None,
    best: BestKnown,
    validations: Sequence[Validation],
) -> list[dict[str, Any]]:
    """The rows of one group, best first."""
    newest = _newest_identities(members)
    met = [stored.record.attack for other in members for stored in other.attacks.values()]
    rows = []
    for result in members:
        asked = met if suite is None else suite.for_norm(result.threat_model.family)
        row = _row(result, {spec.name for spec in asked if not spec.is_optional}, newest)
        brackets = {
            "best_known_acc": best.robust_acc(result),
            "verified_acc": best.verified_acc(result),
        }
        row |= {name: None if v is None else v.estimate for name, v in brackets.items()}
        if (judged := validation_of(result, validations)) is not None:
            doubted = judged.masked if judged.verdict == "unreliable" else ()
            row["validated"] = judged.verdict
            row["unreliable"] = ";".join(item.test for item in doubted)
        rows.append(row)
    # The limits as they are shown, so that the ranks follow from the CSV.
    ranked = [row for row in rows if row["rank"] is not None]
    lows = [rounded(row["robust_acc_low"], _DIGITS["percent"]) for row in ranked]
    for row in ranked:
        high = rounded(row["robust_acc_high"], _DIGITS["percent"])
        row["rank"] = 1 + sum(low > high for low in lows)
    return sorted(
        rows,
        key=lambda r: (-r["robust_acc"], -r["clean_acc"], r["model"], r["weights_sha256"]),
    )


def _row(
    result: ModelResult, required: set[str], newest: Mapping[tuple[Any, str], Any]
) -> dict[str, Any]:
    unranked = [f"errored:{errored}"] if (errored := int(result.errored.sum())) else []
    unranked += [f"missing:{name}" for name in sorted(required - set(result.attacks))]
    for name in result.attacks:
        if result.parameters_of(name) != newest[result.group, name]:
            unranked.append(f"differs:{name}")
    if all(stored.record.attack.is_judged for stored in result.attacks.values()):
        unranked.append("judged_only")
    measured = result.attention_attack is not None
    audit = _AUDIT if result.audit_missed is not None else ()
    columns = (*_HEAD, *audit, *_WORST, *(_ATTENTION if measured else ()), *_TAIL)
    row = {column.name: column.of(result) for column in columns}
    row["rank"] = None if unranked else 0
    row["validity"] = ";".join(unranked + _doubts(result)) or NO_FLAG
    for attack in result.attacks:
        column = attack_column(attack)
        if column in row:
            raise UsageError(f"two attacks share the column {column!r}", where=result.model.id)
        row[column] = result.attack_acc(attack).estimate
    metrics = result.attention_record.metrics if measured else {}
    for name in columns_shown("leaderboard"):
        if (summary := metrics.get(name)) is not None:
            if name in row:
                raise UsageError(f"a metric has the name of the column {name!r}")
            row[name] = summary.mean
            row[f"{name}_broken"] = summary.mean_broken
            row[f"{name}_survived"] = summary.mean_survived
    return row


def validity(result: ModelResult) -> str:
    """What speaks against a result by itself, whatever the other models met."""
    errored = int(result.errored.sum())
    return ";".join(([f"errored:{errored}"] if errored else []) + _doubts(result)) or NO_FLAG


def _doubts(result: ModelResult) -> list[str]:
    predictions = [result.column(name, "clean_prediction") for name in result.attacks]
    # These pass over NaN, and NaN is not larger than itself.
    unstable = int((np.fmax.reduce(predictions) > np.fmin.reduce(predictions)).sum())
    errored = result.errored.any()
    flags = {
        f"{flag.name}({flag.severity})"
        for stored in result.attacks.values()
        for flag in stored.record.flags
        if flag.name != ERRORED or not errored  # which says how many
    }
    return ([f"unstable_clean:{unstable}"] if unstable else []) + sorted(flags)


def _newest_identities(members: list[ModelResult]) -> dict[tuple[Any, str], Any]:
    """By group and attack; the first of equally new records counts."""
    met = [((r.group, name), s.record) for r in members for name, s in r.attacks.items()]
    newest_first = sorted(met, key=lambda item: item[1].created, reverse=True)
    return {key: record.attack.identity for key, record in reversed(newest_first)}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    present = {name for row in rows for name in row}
    splits = ("", "_broken", "_survived")
    metrics = [f"{name}{split}" for name in columns_shown("leaderboard") for split in splits]
    attacks = sorted(name for name in present - {*_KINDS, *metrics} if name.endswith("_acc"))
    audit = [c.name for c in _AUDIT if c.name in present]
    known = {name for row in rows for name, value in row.items() if value is not None}
    head = [c.name for c in _HEAD if c.name in known or c.name not in _WHERE_KNOWN]
    columns = [*head, *attacks, *audit, *(c.name for c in _WORST)]
    if "attention_attack" in present:
        columns += [c.name for c in _ATTENTION]
        columns += [name for name in metrics if any(row.get(name) is not None for row in rows)]
    columns += [c.name for c in _TAIL]
    data: dict[str, Any] = {}
    for name in columns:
        values = [row.get(name) for row in rows]
        kind = _kind(name)
        if kind in _DIGITS:
            data[name] = np.array([math.nan if v is None else float(v) for v in values])
        else:
            data[name] = pd.array(values, dtype="Int64" if kind == "whole" else "str")
    return pd.DataFrame(data)


def _kind(column: str) -> _Kind:
    if column in _KINDS:
        return _KINDS[column]
    base = column.removesuffix("_broken").removesuffix("_survived")
    return "metric" if base in METRICS else "percent"


def _cell(value: Any, digits: int | None) -> str:
    if is_undefined(value):
        return ""
    # Adding 0 turns −0.0 into 0.0.
    return str(value) if digits is None else fixed(value + 0.0, digits)
