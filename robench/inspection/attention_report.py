"""What is printed and written of studies of attention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from robench.formatting import format_table, number, p_value
from robench.inspection.attention_study import AttentionStudy
from robench.reporting.drawing import attempt
from robench.reporting.export import group_slug, samples_frame, write_tables
from robench.reporting.findings import attention_findings, attention_sentences
from robench.reporting.metric_tables import attention_table, class_table, worst_classes
from robench.reporting.model_results import GroupKey, ModelResult, collect
from robench.text import file_name, unused_file_name

_METRICS = ("metric", "mean", "n", "mean_broken", "n_broken", "mean_survived", "n_survived")
_FINDINGS = ("model", "finding", "auc", "auc_low", "auc_high", "rank_biserial", "p_holm", "verdict")


@dataclass(frozen=True)
class AttentionReport:
    """The studies of models that were attacked alike, on the same samples.

    Attributes:
        looks: each study, with the result that reports read of it.
        findings: from :func:`robench.reporting.findings.attention_findings`, corrected over them.
        classes: from :func:`robench.reporting.metric_tables.class_table`.
    """

    looks: list[tuple[AttentionStudy, ModelResult]]
    findings: pd.DataFrame
    classes: pd.DataFrame

    @property
    def group(self) -> GroupKey:
        """Data, threat model and seed of all of them."""
        return self.looks[0][1].group

    @property
    def attack(self) -> str:
        """Its name."""
        return self.looks[0][0].stored.record.attack.name

    @property
    def folder(self) -> str:
        """Where its files go, such as ``digits-Linf-0.2-n500-seed0/pgd-20``."""
        return f"{group_slug(self.group)}/{file_name(self.attack)}"

    def text(self) -> str:
        """For a terminal: metrics of each model, findings, and the classes that come off worst."""
        blocks = [_metrics_text(*look) for look in self.looks]
        if len(self.findings):
            table = format_table(_FINDINGS, _cells(self.findings, _FINDINGS))
            blocks.append("\n".join([table, "", *attention_sentences(self.findings)]))
        blocks.append(_worst_text(worst_classes(self.classes)))
        return "\n\n".join(blocks)

    def content(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "group": str(self.group),
            "attack": self.attack,
            "models": [_metrics_content(*look) for look in self.looks],
            "findings": self.findings.to_dict("records"),
        }


def reports_of(studied: Sequence[AttentionStudy]) -> list[AttentionReport]:
    """The studies, group by group."""
    groups: dict[GroupKey, list[tuple[AttentionStudy, ModelResult]]] = {}
    for study in studied:
        (result,) = collect([study.stored])
        groups.setdefault(result.group, []).append((study, result))
    reports = []
    for looks in groups.values():
        results = [result for _, result in looks]
        reports.append(AttentionReport(looks, attention_findings(results), class_table(results)))
    return reports


def write_reports(reports: Sequence[AttentionReport], folder: Path) -> list[Path]:
    """Write tables, a CSV of samples for each model, and overlays.

    A folder for each report has ``attention.csv``, ``findings.csv`` and ``per_class.csv``, and
    for each model ``samples_MODEL.csv`` and ``overlays_MODEL.png`` and ``.svg``.

    Returns:
        The files; overlays are not among them, with a warning, where matplotlib does not work.

    Raises:
        StoreError: a file cannot be written.
    """
    files: list[Path] = []
    for report in reports:
        place = folder / report.folder
        files += write_tables(
            place,
            attention=attention_table([result for _, result in report.looks]),
            findings=report.findings,
            per_class=report.classes,
        )
        used: set[str] = set()
        for study, _ in report.looks:
            stored = study.stored
            model = stored.record.model
            name = unused_file_name(model.name, used, model.fingerprint[:8])
            files += write_tables(place, **{f"samples_{name}": samples_frame([stored])})
            files += attempt(partial(_overlays, study, place / f"overlays_{name}")) or []
    return files


def _overlays(study: AttentionStudy, stem: Path) -> list[Path]:
    # Loads matplotlib.
    from robench.reporting.plots.samples import attention_overlays
    from robench.reporting.plots.style import save

    panel = study.panel
    figure = None if panel is None else attention_overlays(panel, study.stored.record)
    return [] if figure is None else list(save(figure, stem))


def _metrics_content(study: AttentionStudy, result: ModelResult) -> dict[str, Any]:
    record = study.stored.record
    return {
        "model": record.model.id,
        "weights_sha256": record.model.weights_sha256,
        "source": study.source,
        "attention_method": record.attention_method,
        "notes": [flag.evidence for flag in record.flags],
        "metrics": attention_table([result]).to_dict("records"),
        "classes": class_table([result]).to_dict("records"),
    }


def _metrics_text(study: AttentionStudy, result: ModelResult) -> str:
    record = study.stored.record
    source = "kept adversarial inputs" if study.source == "stored" else "attacked anew"
    title = (
        f"{record.model.name} under {record.attack.name}, {record.attention_method or 'no maps'}, "
        f"{source} ({result.group})"
    )
    notes = [f"note: {flag.evidence}" for flag in record.flags if flag.name.startswith("no_")]
    table = attention_table([result])
    if table.empty:
        return "\n".join([title, *notes, "No metrics: no sample was classified correctly."])
    return "\n".join([title, *notes, format_table(_METRICS, _cells(table, _METRICS))])


def _worst_text(worst: pd.DataFrame) -> str:
    rows = []
    for row in worst.to_dict("records"):
        for name, value in row.items():
            label = row.get(f"{name}_class")
            if label is not None:
                rows.append([str(row["model"]), str(name), str(label), number(value, 3)])
    return format_table(("model", "by", "worst class", "its value"), rows)


def _cells(frame: pd.DataFrame, columns: Sequence[str]) -> Iterable[list[str]]:
    for row in frame[list(columns)].itertuples(index=False):
        yield [
            p_value(value) if name == "p_holm" else number(value, 3)
            for name, value in zip(columns, row, strict=True)
        ]
