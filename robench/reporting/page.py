"""The leaderboard as one HTML file: tables, figures and flags, nothing to fetch from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from robench.errors import StoreError
from robench.files import atomic_write
from robench.formatting import is_undefined, p_value
from robench.metric_catalogue import METRICS
from robench.reporting.findings import association_sentences, attention_sentences
from robench.reporting.leaderboard import NO_FLAG, leaderboard_csv

__all__ = ["build_page", "write_page"]

_GROUP = ("dataset", "norm", "eps", "n", "seed", "data_sha256")

_LABELS: dict[str, tuple[str, str]] = {
    "rank": ("rank", "models whose intervals overlap share a rank"),
    "model": ("model", "name in the zoo"),
    "defense": ("defense", "training recipe"),
    "architecture": ("architecture", "network"),
    "parameters": ("parameters", "number of weights"),
    "robust_acc": ("robust %", "share of samples that survive every attack"),
    "interval": ("95 % interval", "Wilson interval of the robust accuracy"),
    "clean_acc": ("clean %", "accuracy without an attack"),
    "worst_class": ("worst class", "class with the lowest robust accuracy"),
    "worst_class_robust_acc": ("its robust %", "robust accuracy of the worst class"),
    "validity": ("validity", "what speaks against the number"),
}
_HIDDEN = {
    *_GROUP,
    *("robust_acc_low", "robust_acc_high", "attention_method", "weights_sha256"),
    *("forwards", "backwards", "seconds"),
}
_FINDING_COLUMNS = {
    "model": "name in the zoo",
    "finding": "the observation that is tested",
    "metric": "the metric that it is about",
    "n_broken": "broken samples with the metric",
    "n_survived": "surviving samples with the metric",
    "models": "models with the metric",
    "auc": "chance that a broken sample's value exceeds a survivor's; 0.5: no effect",
    "auc_low": "lower 95 % limit of the AUC",
    "auc_high": "upper 95 % limit of the AUC",
    "spearman": "rank correlation of the metric's mean with robust accuracy",
    "low": "lower 95 % limit of the correlation",
    "high": "upper 95 % limit of the correlation",
    "p_holm": "p-value, Holm-corrected",
    "verdict": "whether the observation holds",
}
_FINDING_TEXT = ("model", "finding", "metric", "verdict")
_CLASS_LABELS = {
    "model": ("model", "name in the zoo"),
    "robust_acc_class": ("least robust class", "class with the lowest robust accuracy"),
    "robust_acc": ("robust %", "its robust accuracy, worst case over all attacks"),
}
_TEXT = ("model", "defense", "architecture", "worst_class", "validity", "attention_attack")


@dataclass(frozen=True)
class _Column:
    label: str
    meaning: str
    text: bool


@dataclass(frozen=True)
class _Cell:
    shown: str
    value: str
    style: str


@dataclass(frozen=True)
class _Table:
    caption: str
    columns: list[_Column]
    rows: list[list[_Cell]]


@dataclass(frozen=True)
class _Image:
    source: str
    caption: str


@dataclass(frozen=True)
class _Section:
    heading: str
    tables: list[_Table]
    images: list[_Image]
    notes: list[str] = field(default_factory=list)


def build_page(
    leaderboard: pd.DataFrame,
    *,
    figures: Iterable[str | Path] = (),
    findings: pd.DataFrame | None = None,
    associations: pd.DataFrame | None = None,
    classes: pd.DataFrame | None = None,
    title: str = "robench leaderboard",
) -> str:
    """Render the page.

    Args:
        leaderboard: from :func:`robench.reporting.leaderboard.build_leaderboard`.
        figures: PNG or SVG files; they are embedded, each under its file's name.
        findings: from :func:`robench.reporting.findings.attention_findings`.
        associations: from :func:`robench.reporting.findings.representation_findings`.
        classes: from :func:`robench.reporting.per_class.worst_classes`.
        title: the page's title.

    Raises:
        StoreError: a figure cannot be read.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    sections = []
    if len(leaderboard):
        for key, block in leaderboard.groupby(list(_GROUP), sort=False, dropna=False):
            facts = dict(zip(_GROUP, key, strict=True))
            heading = (
                f"{facts['dataset']}, {facts['norm']} {facts['eps']}, n = {facts['n']}, "
                f"seed {facts['seed']}"
            )
            sections.append(_Section(heading, [_leaderboard_table(block)], []))
    if findings is not None and len(findings):
        tables, notes = _findings_tables(findings), attention_sentences(findings)
        sections.append(_Section("Attention of broken samples", tables, [], notes))
    if associations is not None and len(associations):
        tables, notes = _findings_tables(associations), association_sentences(associations)
        sections.append(_Section("Features and robust accuracy over models", tables, [], notes))
    if classes is not None and len(classes):
        tables = [_classes_table(str(key), block) for key, block in classes.groupby("group")]
        sections.append(_Section("Classes that come off worst", tables, []))
    images = [_image(Path(path)) for path in figures]
    if images:
        sections.append(_Section("Figures", [], images))
    # Names of models and classes come from other people's files: everything is escaped.
    environment = Environment(
        loader=PackageLoader("robench.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        introduction=_introduction(leaderboard),
        sections=sections,
        csv=f"data:text/csv;charset=utf-8,{quote(leaderboard_csv(leaderboard))}",
    )


def write_page(path: str | Path, leaderboard: pd.DataFrame, **options: Any) -> Path:
    """Write :func:`build_page` atomically; options are its keyword arguments.

    Raises:
        StoreError: the page cannot be written, or a figure not be read.
    """
    atomic_write(Path(path), build_page(leaderboard, **options).encode())
    return Path(path)


def _introduction(leaderboard: pd.DataFrame) -> list[str]:
    if not len(leaderboard):
        return ["There are no records yet. Run `robench run` first."]
    return [
        "Robust accuracy is the worst case, sample by sample, over all attacks shown. Models "
        "whose 95 % intervals overlap share a rank.",
        f"“{NO_FLAG}” means that no check raised a doubt, not that the number is proven.",
    ]


def _leaderboard_table(block: pd.DataFrame) -> _Table:
    names = [
        name
        for name in block.columns
        if name not in _HIDDEN and not name.endswith(("_broken", "_survived"))
    ]
    place = names.index("robust_acc") + 1
    names.insert(place, "interval")
    rows = []
    for record in block.to_dict("records"):
        record["interval"] = _interval(record)
        rows.append([_cell(name, record[name]) for name in names])
    return _Table(
        f"{len(block)} model{'s' if len(block) > 1 else ''}; click a heading to sort",
        [_column(name) for name in names],
        rows,
    )


def _classes_table(group: str, classes: pd.DataFrame) -> _Table:
    names = [name for name in classes.columns if name != "group"]
    rows = [[_class_cell(name, row[name]) for name in names] for row in classes.to_dict("records")]
    return _Table(
        f"{group}; per_class.csv has all classes", [_class_column(name) for name in names], rows
    )


def _class_column(name: str) -> _Column:
    if name in _CLASS_LABELS:
        label, meaning = _CLASS_LABELS[name]
        return _Column(label, meaning, name != "robust_acc")
    item = METRICS[name.removesuffix("_class")]
    if name in METRICS:
        return _Column("its mean", f"{item.label} of that class: {item.meaning}", False)
    which = "lowest" if item.direction == "higher" else "highest"
    return _Column(f"{which} {item.label.lower()}", f"class with the {which} mean", True)


def _class_cell(name: str, value: Any) -> _Cell:
    text = name == "model" or name.endswith("_class")
    if is_undefined(value):
        return _Cell("", "", "text" if text else "")
    if text:
        return _Cell(str(value), str(value), "text")
    return _Cell(f"{value:.{1 if name == 'robust_acc' else 3}f}", repr(value), "")


def _findings_tables(findings: pd.DataFrame) -> list[_Table]:
    return [
        _findings_table(str(group), block) for group, block in findings.groupby("group", sort=False)
    ]


def _findings_table(group: str, findings: pd.DataFrame) -> _Table:
    names = [name for name in findings.columns if name in _FINDING_COLUMNS]
    rows = [
        [_finding_cell(name, row[name]) for name in names] for row in findings.to_dict("records")
    ]
    columns = [
        _Column(name.replace("_", " "), _FINDING_COLUMNS[name], name in _FINDING_TEXT)
        for name in names
    ]
    return _Table(f"{group}; what does not hold is listed too", columns, rows)


def _finding_cell(name: str, value: Any) -> _Cell:
    style = "text" if name in _FINDING_TEXT else ""
    if is_undefined(value):
        return _Cell("", "", style)
    if isinstance(value, float):
        shown = p_value(value) if name == "p_holm" else f"{value:.3f}"
        return _Cell(shown, repr(value), style)
    return _Cell(str(value), str(value), style)


def _column(name: str) -> _Column:
    if name in _LABELS:
        label, meaning = _LABELS[name]
    elif name in METRICS:
        label, meaning = METRICS[name].label, METRICS[name].meaning
    else:
        label = re.sub(r"_acc$", " %", name).replace("_", "-")
        meaning = f"robust accuracy under {label.removesuffix(' %')}"
    return _Column(label, meaning, name in _TEXT)


def _cell(name: str, value: Any) -> _Cell:
    if is_undefined(value):
        return _Cell("", "", "text" if name in _TEXT else "")
    if name == "validity":
        notes = str(value).split(";")
        bad = any("(severe)" in n or n.startswith(("errored", "missing")) for n in notes)
        style = "severe" if bad else "" if value == NO_FLAG else "warning"
        return _Cell(", ".join(notes), str(value), f"text {style}".strip())
    if isinstance(value, float):
        digits = 4 if name in METRICS else 2
        return _Cell(f"{value:.{digits}f}", repr(value), "")
    shown = f"{value:,}" if name == "parameters" else str(value)
    return _Cell(shown, str(value), "text" if name in _TEXT else "")


def _interval(record: dict[Any, Any]) -> str:
    low, high = record["robust_acc_low"], record["robust_acc_high"]
    return "" if is_undefined(low) else f"{low:.1f}–{high:.1f}"


def _image(path: Path) -> _Image:
    kinds = {".png": "image/png", ".svg": "image/svg+xml"}
    if path.suffix not in kinds:
        raise StoreError(f"cannot embed {path.name!r}", where=path, hint="Give a PNG or SVG file")
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise StoreError(f"cannot read the figure: {error.strerror}", where=path) from error
    caption = f"{path.stem.replace('_', ' ')} ({path.parent.name})"
    return _Image(f"data:{kinds[path.suffix]};base64,{content}", caption)
