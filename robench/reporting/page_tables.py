"""Tables of the page: their columns, what these mean, and cells as they are shown."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pandas as pd

from robench.formatting import fixed, is_undefined, p_value
from robench.metric_catalogue import METRICS
from robench.records import Validation
from robench.reporting.findings import association_sentences, attention_sentences
from robench.reporting.leaderboard import NO_FLAG, as_written
from robench.reporting.metric_tables import worst_classes
from robench.reporting.targeted import easiest_pairs

GROUP = ("dataset", "norm", "eps", "n", "seed", "data_sha256")
_HIDDEN = {
    *GROUP,
    *("robust_acc_high", "attention_method", "weights_sha256"),
    *("forwards", "backwards", "seconds"),
}


@dataclass(frozen=True)
class Cell:
    """What is shown, what it is sorted by, and its classes of style."""

    shown: str
    value: str
    style: str


@dataclass(frozen=True)
class Column:
    """A heading, what it means, and how its values are shown."""

    label: str
    meaning: str
    text: bool = False
    digits: int = 2
    show: Callable[[Any], str] | None = None

    def cell(self, value: Any) -> Cell:
        """A value of the column, None, NaN and NA where it is undefined."""
        style = "text" if self.text else ""
        if is_undefined(value):
            return Cell("", "", style)
        show = self.show or (
            partial(fixed, digits=self.digits) if isinstance(value, float) else str
        )
        return Cell(show(value), str(value), style)


class _Sentence(Column):
    """Text that is as long as it needs to be."""

    def cell(self, value: Any) -> Cell:
        return replace(super().cell(value), style="text long")


class _Outcome(Column):
    """What a test says, coloured by whether it found something."""

    def cell(self, value: Any) -> Cell:
        style = "text warning" if value == "masked" else "text"
        return replace(super().cell(value), style=style)


class _Validity(Column):
    """What speaks against a number, coloured by how much."""

    def cell(self, value: Any) -> Cell:
        notes = str(value).split(";")
        bad = any(
            "(severe)" in n or n.startswith(("errored", "missing", "judged_only")) for n in notes
        )
        style = "severe" if bad else "" if value == NO_FLAG else "warning"
        return Cell(", ".join(notes), str(value), f"text {style}".strip())


@dataclass(frozen=True)
class Table:
    """``names`` are the columns' in CSV files; ``keys`` are of the leaderboard alone: by row, what
    the page filters by, and what leads to the model."""

    caption: str
    names: list[str]
    columns: list[Column]
    rows: list[list[Cell]]
    keys: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """A part of the page under one heading."""

    heading: str
    tables: list[Table] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_MODEL = Column("model", "name in the zoo", text=True)
_BOARD = {
    "rank": Column("rank", "models whose intervals overlap share a rank"),
    "model": _MODEL,
    "defense": Column("defense", "training recipe", text=True),
    "architecture": Column("architecture", "network", text=True),
    "parameters": Column("parameters", "number of weights", show="{:,}".format),
    "robust_acc": Column("robust %", "share of samples that survive every attack"),
    "robust_acc_low": Column("95 % interval", "Wilson interval of the robust accuracy"),
    "best_known_acc": Column(
        "best known %", "share that no record of the model has broken, whatever made its finds"
    ),
    "verified_acc": Column(
        "verified %", "share that no perturbation can break, by bounds of `robench verify-bounds`"
    ),
    "validated": Column("validated", "what `robench validate` says of the number", text=True),
    "unreliable": Column("unreliable", "what masks an unreliable number's gradients", text=True),
    "clean_acc": Column("clean %", "accuracy without an attack"),
    "audit_missed": Column(
        "audit may have missed",
        "points of robust accuracy that an audited protocol may have missed, 95 % bound",
    ),
    "worst_class": Column("worst class", "class with the lowest robust accuracy", text=True),
    "worst_class_robust_acc": Column("its robust %", "robust accuracy of the worst class"),
    "attention_attack": Column(
        "attention-attack", "the attack that the metrics are given for", text=True
    ),
    "validity": _Validity("validity", "what speaks against the number", text=True),
}
_FINDINGS = {
    "model": _MODEL,
    "finding": Column("finding", "the observation that is tested", text=True),
    "metric": Column("metric", "the metric that it is about", text=True),
    "n_broken": Column("n broken", "broken samples with the metric"),
    "n_survived": Column("n survived", "surviving samples with the metric"),
    "models": Column("models", "models with the metric"),
    "auc": Column(
        "auc", "chance that a broken sample's value exceeds a survivor's; 0.5: no effect", digits=3
    ),
    "auc_low": Column("auc low", "lower 95 % limit of the AUC", digits=3),
    "auc_high": Column("auc high", "upper 95 % limit of the AUC", digits=3),
    "spearman": Column(
        "spearman", "rank correlation of the metric's mean with robust accuracy", digits=3
    ),
    "low": Column("low", "lower 95 % limit of the correlation", digits=3),
    "high": Column("high", "upper 95 % limit of the correlation", digits=3),
    "p_holm": Column("p holm", "p-value, Holm-corrected", show=p_value),
    "verdict": Column("verdict", "whether the observation holds", text=True),
}
_CLASSES = {
    "model": _MODEL,
    "robust_acc_class": Column(
        "least robust class", "class with the lowest robust accuracy", text=True
    ),
    "robust_acc": Column("robust %", "its robust accuracy, worst case over all attacks", digits=1),
}

_TESTS = {
    "test": Column("test", "what looks for masked gradients", text=True),
    "outcome": _Outcome("outcome", "sound, masked, or undefined for this model", text=True),
    "value": Column("value", "what was measured", digits=3),
    "threshold": Column("threshold", "what it was held against", digits=3),
    "asks_for": Column("asks for", "countermeasures that would find what is hidden", text=True),
    "evidence": _Sentence("evidence", "what was seen", text=True),
}
_TRIALS = {
    "countermeasure": Column("countermeasure", "what was tried", text=True),
    "asked_by": Column("asked by", "the tests that asked for it", text=True),
    "tried": Column("tried", "whether its searches ran", text=True),
    "finds": Column("finds", "samples that nothing before it had broken"),
    "lowered_by": Column("lowered by", "the same in points of all samples"),
    "message": _Sentence("", "what is to be said about it", text=True),
}

_TRANSFERS = {
    "transfer_matrix": "Robust accuracy on inputs made for others, sources by targets",
    "transfers": "Robust accuracy on inputs made for others, pair by pair",
}

_ANSWERS: dict[str, tuple[str, Callable[[pd.DataFrame], list[str]]]] = {
    "findings": ("Attention of broken samples", attention_sentences),
    "associations": ("Features and robust accuracy over models", association_sentences),
}


def leaderboard_table(block: pd.DataFrame, ids: Sequence[str] = ()) -> Table:
    """The leaderboard of one group; ``ids`` lead each row to its model's panel."""
    limits = zip(block["robust_acc_low"], block["robust_acc_high"], strict=True)
    intervals = [
        "" if is_undefined(low) else f"{fixed(low, 1)}–{fixed(high, 1)}" for low, high in limits
    ]
    caption = f"{len(block)} model{'s' if len(block) > 1 else ''}; click a heading to sort"
    shown = {
        name: _BOARD.get(name) or _metric_or_attack(name)
        for name in block.columns
        if name not in _HIDDEN and not name.endswith(("_broken", "_survived"))
    }
    # Both limits are shown in the column of the lower one.
    table = _table(caption, as_written(block).assign(robust_acc_low=intervals), shown)
    keys = [
        {
            "id": identifier,
            "dataset": str(row["dataset"]),
            "norm": str(row["norm"]),
            "eps": str(row["eps"]),
            "defense": str(row["defense"]),
            "flags": "\n".join(re.split(r"[:(]", note)[0] for note in row["validity"].split(";")),
        }
        for row, identifier in zip(block.to_dict("records"), ids or [""] * len(block), strict=True)
    ]
    return replace(table, keys=keys)


def _metric_or_attack(name: str) -> Column:
    if name in METRICS:
        return Column(METRICS[name].label, METRICS[name].meaning, digits=4)
    label = re.sub(r"_acc$", " %", name).replace("_", "-")
    return Column(label, f"robust accuracy under {label.removesuffix(' %')}")


def report_section(name: str, frame: pd.DataFrame) -> Section:
    """A report's table as a section of the page."""
    if name in _ANSWERS:
        heading, sentences = _ANSWERS[name]
        shown = {column: _FINDINGS[column] for column in frame.columns if column in _FINDINGS}
        tables = [
            _table(f"{group}; what does not hold is listed too", block, shown)
            for group, block in frame.groupby("group", sort=False)
        ]
        return Section(heading, tables, notes=sentences(frame))
    if name == "per_class":
        worst = worst_classes(frame)
        shown = {column: _class_column(column) for column in worst.columns if column != "group"}
        tables = [
            _table(f"{group}; per_class.csv has all classes", block, shown)
            for group, block in worst.groupby("group")
        ]
        return Section("Classes that come off worst", tables)
    if name in ("transfers", "transfer_matrix"):
        tables = [
            _plain_table(
                f"{group}; {name}.csv", block.drop(columns="group").dropna(axis=1, how="all")
            )
            for group, block in frame.groupby("group", sort=False)
        ]
        return Section(_TRANSFERS[name], tables)
    if name == "target_matrix":
        # The figure has all of them.
        caption, frame = "led across most often; target_matrix.csv has all", easiest_pairs(frame)
        heading = "Pairs of classes"
    else:
        caption, heading = f"{name}.csv", name.replace("_", " ").capitalize()
    return Section(heading, [_plain_table(caption, frame)])


def _plain_table(caption: str, frame: pd.DataFrame) -> Table:
    """A table as it is."""
    return _table(caption, frame, {str(name): _plain_column(frame[name]) for name in frame.columns})


def _plain_column(values: pd.Series) -> Column:
    """A column as it is, with as many digits as its table has."""
    name, text = str(values.name), not pd.api.types.is_numeric_dtype(values)
    digits = 4 if text or not values.round(2).equals(values) else 2
    return Column(name.replace("_", " "), name, text, digits)


def validation_section(validation: Validation) -> Section:
    """Of a validation: the verdict, each test's outcome, and what was tried."""
    heading = (
        f"Validation of {validation.model.name}: {validation.dataset.name}, "
        f"{validation.threat_model}, n = {validation.dataset.n}, seed {validation.seed}"
    )
    verdict = (
        f"{validation.verdict}: {fixed(validation.robust_acc, 1)} % robust under {validation.suite}, "
        f"{fixed(validation.best_known_acc, 1)} % after the countermeasures"
    )
    tests = [{**vars(item), "asks_for": ", ".join(item.asks_for)} for item in validation.diagnoses]
    trials = [
        {
            **vars(item),
            "asked_by": ", ".join(item.asked_by) or "always",
            "tried": "yes" if item.tried else "no",
            "message": item.message or "",
        }
        for item in validation.trials
    ]
    tables = [_grid("tests for masked gradients", tests, _TESTS)]
    if trials:
        tables.append(_grid("countermeasures, in the order in which they ran", trials, _TRIALS))
    return Section(heading, tables, notes=[verdict, *validation.reasons])


def _grid(caption: str, rows: list[dict[str, Any]], columns: Mapping[str, Column]) -> Table:
    cells = [[column.cell(row[name]) for name, column in columns.items()] for row in rows]
    return Table(caption, list(columns), list(columns.values()), cells)


def _class_column(name: str) -> Column:
    if name in _CLASSES:
        return _CLASSES[name]
    item = METRICS[name.removesuffix("_class")]
    if name in METRICS:
        return Column("its mean", f"{item.label} of that class: {item.meaning}", digits=3)
    which = "lowest" if item.direction == "higher" else "highest"
    return Column(f"{which} {item.label.lower()}", f"class with the {which} mean", text=True)


def _table(caption: str, frame: pd.DataFrame, columns: Mapping[str, Column]) -> Table:
    return _grid(
        caption, [{str(k): v for k, v in r.items()} for r in frame.to_dict("records")], columns
    )
