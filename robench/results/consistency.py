"""What a record says twice: everything that follows from its table or from its other fields.

Checksums show damage; whoever edits a record can make them anew. So whatever can be derived is
derived again when a record is read, and compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from robench.errors import CorruptRecordError, RobenchError, one_line
from robench.records import (
    ERROR_RATES,
    REACHED,
    AuditResult,
    EvaluationRecord,
    MetricSummary,
    Outcome,
)
from robench.records.corruptions import CORRECT
from robench.results.stored_record import StoredRecord
from robench.results.tables import metric_columns
from robench.text import visible
from robench.threat_models import class_number

_NO_MEAN = {"minimum_size", "target", *ERROR_RATES}
"""Columns beside the fixed ones that are no metrics, and those that start with ``REACHED``
or ``CORRECT``."""

_ROUNDING = {"Linf": 1e-6, "L2": 1e-3, "L1": 2.5}
"""How far rounding can carry float32 images of ten million pixels out of their ball, by norm."""


def check_consistency(stored: StoredRecord) -> None:
    """Refuse a record whose parts contradict each other: it was edited, or put together.

    Raises:
        CorruptRecordError: its key is not its content's; its counts, means, stages, audit, cost or
            classes' accuracies are not those of its rows; or its rows contradict themselves.
    """
    try:
        metrics = metric_columns(stored.arrow)
        problem = next(_contradictions(stored.record, stored.table, metrics), None)
    except (RobenchError, KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"the table is none of samples ({one_line(error)})"
    if problem is not None:
        raise CorruptRecordError(f"contradicts itself: {problem}", where=stored.path)


def class_accuracies(record: EvaluationRecord, table: pd.DataFrame) -> dict[str, float]:
    """``class_robust_acc`` of the rows, in percent: of each class that has samples."""
    data = record.dataset
    names = data.class_names or tuple(map(str, range(data.num_classes)))
    survived = 100.0 * (table["outcome"] == Outcome.SURVIVED)
    by_label = survived.groupby(table["label"]).mean()
    number = class_number(record.threat_model.targets)
    known = set(by_label.index) - {number}
    return {name: float(by_label[i]) for i, name in enumerate(names) if i in known}


def metric_means(table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, MetricSummary]:
    """What the rows say of metrics, by name, each given with its column."""
    broken, survived = (
        (table["outcome"] == kind).to_numpy(bool, na_value=False)
        for kind in (Outcome.BROKEN, Outcome.SURVIVED)
    )
    found = {}
    for name, column in columns.items():
        values = np.full(len(table), np.nan)
        if column in table:
            values = table[column].to_numpy(np.float64, na_value=np.nan)
        known = ~np.isnan(values)
        found[name] = MetricSummary.of(
            values[known & broken].tolist(), values[known & survived].tolist()
        )
    return found


def _contradictions(
    record: EvaluationRecord, table: pd.DataFrame, metrics: list[str]
) -> Iterator[str]:
    if not record.has_its_key():
        yield "its key is not that of its content"
    outcome = table["outcome"]
    counted = {kind.value: count for kind, count in record.counts.items() if count}
    if (found := outcome.value_counts().to_dict()) != counted:
        yield f"it counts {counted} but its samples are {found}"
    if record.dataset.n != len(table):
        yield f"it has {len(table)} samples of {record.dataset.n}"
    if (judged := record.judged) is not None:
        left_out = sum(judged.not_counted.values())
        if (judged.finds, judged.inputs - left_out) != (counted.get(Outcome.BROKEN, 0),) * 2:
            yield "the finds among its judged inputs are not its broken samples"
    if len(record.dataset.class_names) not in (0, record.dataset.num_classes):
        yield "it names more or fewer classes than it has"
    yield from _of_rows(record, table)
    yield from _of_slopes(record, table)
    if not _same(record.class_robust_acc, class_accuracies(record, table)):
        yield "its classes' accuracies are not those of its samples"
    names = {
        visible(name): name
        for name in metrics
        if name not in _NO_MEAN and not name.startswith((REACHED, CORRECT))
    }
    if lacking := sorted(names.keys() - record.metrics.keys()):
        yield f"it lacks the mean of {lacking[0]}, which its samples have"
    means = metric_means(table, {name: names.get(name, name) for name in record.metrics})
    for name, summary in record.metrics.items():
        if not _same(vars(summary), vars(means[name])):
            yield f"the mean of {name} is not that of its samples"
    if record.threat_model.targets != "all":  # which attacks a sample once for each target
        yield from _of_stages(record, table)
        yield from _of_audit(record, table)
    yield from _of_cost(record, table)


def _of_rows(record: EvaluationRecord, table: pd.DataFrame) -> Iterator[str]:
    rows = _Rows(table)
    outcome, label, ids = rows.outcome, rows["label"], table["sample_id"]
    if ids.isna().any() or ids.duplicated().any():
        yield "a sample has no id of its own"
    classes, targets = record.dataset.num_classes, record.threat_model.targets
    judged = np.isin(outcome, [Outcome.SURVIVED, Outcome.BROKEN])
    broken, error = outcome == Outcome.BROKEN, outcome == Outcome.CLEAN_ERROR
    aim = label if targets is None else rows["target"]
    if not _among(label, classes).all():
        yield "a label is none of the classes"
    number = class_number(targets)
    at_target = label == (np.nan if number is None else number)
    if (at_target != (outcome == Outcome.AT_TARGET)).any():
        yield "the outcome of a sample is not what the target of all says"
    if (number or 0) >= classes or not (_among(aim, classes) | ~judged).all():
        yield "a target is none of the classes"
    right = rows["clean_prediction"] == label
    # Corruptions are tried on what is misclassified as well.
    attacked_in_vain = (outcome == Outcome.ERRORED) & (record.threat_model.corrupted is None)
    reached = (rows["adv_prediction"] == aim) == (targets is not None)
    # What each input has to be taken for: where it must be known, where it is as the label says.
    rules = {
        "clean": (judged | error, right, judged | attacked_in_vain, error),
        "adv": (broken, ~reached, outcome == Outcome.SURVIVED, broken),
    }
    for kind, (known, holds, must_hold, must_not) in rules.items():
        predicted, margin = rows[f"{kind}_prediction"], rows[f"{kind}_margin"]
        there = ~np.isnan(predicted)
        if (known & ~there).any() or (there & ((must_hold & ~holds) | (must_not & holds))).any():
            yield "the outcome of a sample is not what its predictions say"
        if not (_among(predicted, classes) | ~there).all():
            yield "a prediction is none of the classes"
        if (there & (((margin < 0) & holds) | ((margin > 0) & ~holds))).any():
            yield "the margin of a sample is not what its prediction says"
    tried = [name for name in table.columns if name.startswith(REACHED)]
    if targets == "all" and ((table[tried] == 1).any(axis=1) != broken).any():
        yield "the targets that were reached are not those of the broken samples"
    tried = [name for name in table.columns if name.startswith(CORRECT)]
    if tried and (((table[tried] == 0).any(axis=1) != broken) & judged).any():
        yield "the corruptions that a sample does not stand are not what its outcome says"
    if (table["broken_by"].notna() != broken).any():
        yield "what broke a sample is not what its outcome says"
    threat, size = record.threat_model, rows["perturbation_size"]
    if (judged & (size > threat.radius + _ROUNDING[threat.norm])).any():
        yield f"a perturbation is larger than {threat} allows"


class _Rows:
    """Columns of a table by name, as float64 (n,), NaN where there is no number or no column."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table
        self.outcome: np.ndarray = table["outcome"].to_numpy(object)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._table:
            return np.full(len(self._table), np.nan)
        return self._table[name].to_numpy(np.float64, na_value=np.nan)


def _among(numbers: np.ndarray, classes: int) -> np.ndarray:
    """bool (n,): which are a class's."""
    found: np.ndarray = (numbers >= 0) & (numbers < classes) & (numbers % 1 == 0)
    return found


def _of_slopes(record: EvaluationRecord, table: pd.DataFrame) -> Iterator[str]:
    if (slopes := record.slopes) is None:
        return
    ids = set(slopes.samples)
    if not ids or not ids <= set(table["sample_id"]):
        yield "its slopes are of samples that it has not"
    if {len(getattr(slopes, name)) for name in ("samples", *slopes.columns())} != {len(ids)}:
        yield "its slopes are not one for each of their samples"


def _of_stages(record: EvaluationRecord, table: pd.DataFrame) -> Iterator[str]:
    names = [stage.name for stage in record.stages]
    due = [stage.name for stage in record.attack.stages if stage.output is None]
    if len(due) > 1 and not set(due) <= set(names):
        yield "it lacks a stage of its attack"
    if not names:
        return
    found = table["broken_by"].value_counts().to_dict()
    told = {name: sum(s.broken for s in record.stages if s.name == name) for name in names}
    if found != {name: count for name, count in told.items() if count}:
        yield "its stages broke other samples than its rows say"
    errored = (table["outcome"] == Outcome.ERRORED) & table["clean_prediction"].notna()
    if sum(stage.errored for stage in record.stages) != errored.sum():
        yield "its stages have other errors than its rows say"
    if any(stage.broken + stage.errored > stage.attempted for stage in record.stages):
        yield "a stage broke more samples than it attempted"


def _of_audit(record: EvaluationRecord, table: pd.DataFrame) -> Iterator[str]:
    told, spec = record.audit, record.attack.audit
    if (told is None) != (spec is None):
        yield "its audit is not its attack's"
    if told is None or spec is None:
        return
    # What the attack calls a stage for each of further outputs has the names of these.
    plain = {stage.name for stage in record.attack.stages if stage.output is None}
    stages = record.attack.for_outputs({stage.name for stage in record.stages} - plain)
    names = [stage.name for stage in stages]
    early, later = names[: spec.first_stage], names[spec.first_stage :]
    ended = sum(s.broken + s.errored for s in record.stages if s.name in early)
    rows = _Rows(table)
    right = rows["clean_prediction"] == rows["label"]
    survivors = int((right & (table["outcome"] != Outcome.AT_TARGET)).sum()) - ended
    audited = spec.sample_size(survivors)
    late = int((table["broken_by"].notna() & ~table["broken_by"].isin(early)).sum())
    reach, after = told.escalated_to, list[str]()
    if reach is not None:
        if reach not in later:
            yield "it lacks the stage that its audit escalated to"
            return
        after = later[later.index(reach) + 1 :]
    if any(stage.broken for stage in record.stages if stage.name in after):
        yield "a stage that its audit did not escalate to broke a sample"
    # Loads SciPy, which records without an audit do without.
    from robench.statistics.intervals import unaudited_share_upper

    counts = {"hits": told.hits, "broken": late}
    counts["errored"] = sum(stage.errored for stage in record.stages if stage.name in later)
    bound = unaudited_share_upper(survivors, audited, **(counts if told.escalated else {}))
    upper = 0.0 if told.escalated and not after else bound
    derived = AuditResult(
        survivors=survivors,
        audited=audited,
        hits=min(told.hits, late, audited),
        escalated=told.escalated or told.hits > 0 or reach is not None,
        escalated_to=reach,
        missed_share_upper=upper if survivors else None,
    )
    if not _same(vars(told), vars(derived)):
        yield "what its audit saw is not what its rows say"


def _of_cost(record: EvaluationRecord, table: pd.DataFrame) -> Iterator[str]:
    cost = record.cost
    for kind in ("forwards", "backwards"):
        spent = getattr(cost, kind)
        stages = [getattr(stage, kind) for stage in record.stages] or [spent]
        known = table[kind].notna().all()
        if sum(stages) != spent or (known and table[kind].sum() != spent):
            yield f"its cost is not the {kind} of its samples"
    if not cost.seconds >= 0:
        yield "it took no time that there is"
    speed = record.n / cost.seconds if cost.seconds > 0 else None
    if cost.samples_per_second is not None and not _same(cost.samples_per_second, speed):
        yield "its speed is not that of its samples"


def _same(one: object, two: object) -> bool:
    """Equal, numbers up to rounding in sums."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same(one[k], two[k]) for k in one)
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-9)
    return type(one) is type(two) and one == two
