"""The leaderboard as one HTML file: tables, figures and flags, nothing to fetch from elsewhere."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from robench.errors import StoreError
from robench.formatting import fixed, is_undefined, p_value
from robench.metric_catalogue import METRICS
from robench.records import Validation
from robench.reporting.findings import association_sentences, attention_sentences
from robench.reporting.leaderboard import NO_FLAG, as_written, leaderboard_csv
from robench.reporting.metric_tables import worst_classes
from robench.reporting.targeted import easiest_pairs

_GROUP = ("dataset", "norm", "eps", "n", "seed", "data_sha256")
_HIDDEN = {
    *_GROUP,
    *("robust_acc_high", "attention_method", "weights_sha256"),
    *("forwards", "backwards", "seconds"),
}

_NO_RECORDS = ("There are no records yet. Run `robench run` first.",)
_INTRODUCTION = (
    "Robust accuracy is the worst case, sample by sample, over the attacks that robench ran. Models "
    "whose 95 % intervals overlap share a rank. Best known also counts what other records of the "
    "model broke within this radius: other suites, seeds and radii, and inputs made elsewhere.",
    f"“{NO_FLAG}” means that no check raised a doubt, not that the number is proven.",
)


@dataclass(frozen=True)
class _Cell:
    shown: str
    value: str
    style: str


@dataclass(frozen=True)
class _Column:
    label: str
    meaning: str
    text: bool = False
    digits: int = 2
    show: Callable[[Any], str] | None = None

    def cell(self, value: Any) -> _Cell:
        style = "text" if self.text else ""
        if is_undefined(value):
            return _Cell("", "", style)
        show = self.show or (
            partial(fixed, digits=self.digits) if isinstance(value, float) else str
        )
        return _Cell(show(value), str(value), style)


class _Sentence(_Column):
    """Text that is as long as it needs to be."""

    def cell(self, value: Any) -> _Cell:
        return replace(super().cell(value), style="text long")


class _Outcome(_Column):
    """What a test says, coloured by whether it found something."""

    def cell(self, value: Any) -> _Cell:
        style = "text warning" if value == "masked" else "text"
        return replace(super().cell(value), style=style)


class _Validity(_Column):
    """What speaks against a number, coloured by how much."""

    def cell(self, value: Any) -> _Cell:
        notes = str(value).split(";")
        bad = any(
            "(severe)" in n or n.startswith(("errored", "missing", "judged_only")) for n in notes
        )
        style = "severe" if bad else "" if value == NO_FLAG else "warning"
        return _Cell(", ".join(notes), str(value), f"text {style}".strip())


@dataclass(frozen=True)
class _Table:
    caption: str
    columns: list[_Column]
    rows: list[list[_Cell]]


@dataclass(frozen=True)
class _Section:
    heading: str
    tables: list[_Table] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_MODEL = _Column("model", "name in the zoo", text=True)
_BOARD = {
    "rank": _Column("rank", "models whose intervals overlap share a rank"),
    "model": _MODEL,
    "defense": _Column("defense", "training recipe", text=True),
    "architecture": _Column("architecture", "network", text=True),
    "parameters": _Column("parameters", "number of weights", show="{:,}".format),
    "robust_acc": _Column("robust %", "share of samples that survive every attack"),
    "robust_acc_low": _Column("95 % interval", "Wilson interval of the robust accuracy"),
    "best_known_acc": _Column(
        "best known %", "share that no record of the model has broken, whatever made its finds"
    ),
    "verified_acc": _Column(
        "verified %", "share that no perturbation can break, by bounds of `robench verify-bounds`"
    ),
    "validated": _Column("validated", "what `robench validate` says of the number", text=True),
    "unreliable": _Column("unreliable", "what masks an unreliable number's gradients", text=True),
    "clean_acc": _Column("clean %", "accuracy without an attack"),
    "audit_missed": _Column(
        "audit may have missed",
        "points of robust accuracy that an audited protocol may have missed, 95 % bound",
    ),
    "worst_class": _Column("worst class", "class with the lowest robust accuracy", text=True),
    "worst_class_robust_acc": _Column("its robust %", "robust accuracy of the worst class"),
    "attention_attack": _Column(
        "attention-attack", "the attack that the metrics are given for", text=True
    ),
    "validity": _Validity("validity", "what speaks against the number", text=True),
}
_FINDINGS = {
    "model": _MODEL,
    "finding": _Column("finding", "the observation that is tested", text=True),
    "metric": _Column("metric", "the metric that it is about", text=True),
    "n_broken": _Column("n broken", "broken samples with the metric"),
    "n_survived": _Column("n survived", "surviving samples with the metric"),
    "models": _Column("models", "models with the metric"),
    "auc": _Column(
        "auc", "chance that a broken sample's value exceeds a survivor's; 0.5: no effect", digits=3
    ),
    "auc_low": _Column("auc low", "lower 95 % limit of the AUC", digits=3),
    "auc_high": _Column("auc high", "upper 95 % limit of the AUC", digits=3),
    "spearman": _Column(
        "spearman", "rank correlation of the metric's mean with robust accuracy", digits=3
    ),
    "low": _Column("low", "lower 95 % limit of the correlation", digits=3),
    "high": _Column("high", "upper 95 % limit of the correlation", digits=3),
    "p_holm": _Column("p holm", "p-value, Holm-corrected", show=p_value),
    "verdict": _Column("verdict", "whether the observation holds", text=True),
}
_CLASSES = {
    "model": _MODEL,
    "robust_acc_class": _Column(
        "least robust class", "class with the lowest robust accuracy", text=True
    ),
    "robust_acc": _Column("robust %", "its robust accuracy, worst case over all attacks", digits=1),
}

_TESTS = {
    "test": _Column("test", "what looks for masked gradients", text=True),
    "outcome": _Outcome("outcome", "sound, masked, or undefined for this model", text=True),
    "value": _Column("value", "what was measured", digits=3),
    "threshold": _Column("threshold", "what it was held against", digits=3),
    "asks_for": _Column("asks for", "countermeasures that would find what is hidden", text=True),
    "evidence": _Sentence("evidence", "what was seen", text=True),
}
_TRIALS = {
    "countermeasure": _Column("countermeasure", "what was tried", text=True),
    "asked_by": _Column("asked by", "the tests that asked for it", text=True),
    "tried": _Column("tried", "whether its searches ran", text=True),
    "finds": _Column("finds", "samples that nothing before it had broken"),
    "lowered_by": _Column("lowered by", "the same in points of all samples"),
    "message": _Sentence("", "what is to be said about it", text=True),
}

_ANSWERS: dict[str, tuple[str, Callable[[pd.DataFrame], list[str]]]] = {
    "findings": ("Attention of broken samples", attention_sentences),
    "associations": ("Features and robust accuracy over models", association_sentences),
}


def build_page(
    leaderboard: pd.DataFrame,
    *,
    figures: Iterable[str | Path] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
    validations: Iterable[Validation] = (),
    title: str = "robench leaderboard",
) -> str:
    """Render the page of :func:`robench.reporting.leaderboard.build_leaderboard`'s table.

    PNG and SVG ``figures`` are embedded, each under its file's name. ``tables`` are by report
    (:data:`robench.reporting.catalogue.REPORTS`); of ``per_class`` only the classes that come off
    worst are shown, a report from outside is shown as it is. Of ``validations`` each has a panel with
    its verdict, every test's outcome and what was tried.

    Raises:
        StoreError: a figure cannot be read.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    sections = []
    if len(leaderboard):
        for key, block in leaderboard.groupby(list(_GROUP), sort=False, dropna=False):
            dataset, norm, eps, n, seed, _ = key
            heading = f"{dataset}, {norm} {eps}, n = {n}, seed {seed}"
            sections.append(_Section(heading, [_leaderboard_table(block)]))
    sections += [_validation(item) for item in validations]
    sections += [_report(name, frame) for name, frame in (tables or {}).items() if len(frame)]
    if images := [_image(Path(path)) for path in figures]:
        sections.append(_Section("Figures", images=images))
    # Names of models and classes come from other people's files: everything is escaped.
    environment = Environment(
        loader=PackageLoader("robench.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    introduction = _INTRODUCTION if sections else _NO_RECORDS
    return environment.get_template("page.html.j2").render(
        title=title,
        introduction=introduction,
        sections=sections,
        csv=f"data:text/csv;charset=utf-8,{quote(leaderboard_csv(leaderboard))}",
    )


def _leaderboard_table(block: pd.DataFrame) -> _Table:
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
    return _table(caption, as_written(block).assign(robust_acc_low=intervals), shown)


def _metric_or_attack(name: str) -> _Column:
    if name in METRICS:
        return _Column(METRICS[name].label, METRICS[name].meaning, digits=4)
    label = re.sub(r"_acc$", " %", name).replace("_", "-")
    return _Column(label, f"robust accuracy under {label.removesuffix(' %')}")


def _report(name: str, frame: pd.DataFrame) -> _Section:
    """A report's table as a section of the page."""
    if name in _ANSWERS:
        heading, sentences = _ANSWERS[name]
        shown = {column: _FINDINGS[column] for column in frame.columns if column in _FINDINGS}
        tables = [
            _table(f"{group}; what does not hold is listed too", block, shown)
            for group, block in frame.groupby("group", sort=False)
        ]
        return _Section(heading, tables, notes=sentences(frame))
    if name == "per_class":
        worst = worst_classes(frame)
        shown = {column: _class_column(column) for column in worst.columns if column != "group"}
        tables = [
            _table(f"{group}; per_class.csv has all classes", block, shown)
            for group, block in worst.groupby("group")
        ]
        return _Section("Classes that come off worst", tables)
    if name == "target_matrix":
        # The figure has all of them.
        caption, frame = "led across most often; target_matrix.csv has all", easiest_pairs(frame)
        heading = "Pairs of classes"
    else:
        caption, heading = f"{name}.csv", name.replace("_", " ").capitalize()
    shown = {
        str(column): _Column(
            str(column).replace("_", " "), f"{name}.csv", not pd.api.types.is_numeric_dtype(kind), 4
        )
        for column, kind in frame.dtypes.items()
    }
    return _Section(heading, [_table(caption, frame, shown)])


def _validation(validation: Validation) -> _Section:
    """A panel: the verdict, each test's outcome, and what was tried."""
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
    return _Section(heading, tables, notes=[verdict, *validation.reasons])


def _grid(caption: str, rows: list[dict[str, Any]], columns: Mapping[str, _Column]) -> _Table:
    cells = [[column.cell(row[name]) for name, column in columns.items()] for row in rows]
    return _Table(caption, list(columns.values()), cells)


def _class_column(name: str) -> _Column:
    if name in _CLASSES:
        return _CLASSES[name]
    item = METRICS[name.removesuffix("_class")]
    if name in METRICS:
        return _Column("its mean", f"{item.label} of that class: {item.meaning}", digits=3)
    which = "lowest" if item.direction == "higher" else "highest"
    return _Column(f"{which} {item.label.lower()}", f"class with the {which} mean", text=True)


def _table(caption: str, frame: pd.DataFrame, columns: Mapping[str, _Column]) -> _Table:
    return _grid(
        caption, [{str(k): v for k, v in r.items()} for r in frame.to_dict("records")], columns
    )


def _image(path: Path) -> dict[str, str]:
    kinds = {".png": "image/png", ".svg": "image/svg+xml"}
    if path.suffix not in kinds:
        raise StoreError(f"cannot embed {path.name!r}", where=path, hint="Give a PNG or SVG file")
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise StoreError(f"cannot read the figure: {error.strerror}", where=path) from error
    caption = f"{path.stem.replace('_', ' ')} ({path.parent.name})"
    return {"source": f"data:{kinds[path.suffix]};base64,{content}", "caption": caption}
