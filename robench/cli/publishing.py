"""What people read of a results folder: CSV, figures, page. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.cli.output import format_table, number
from robench.files import atomic_write
from robench.reporting.findings import attention_findings, representation_findings
from robench.reporting.leaderboard import build_leaderboard, write_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.page import write_page
from robench.reporting.per_class import class_table, worst_classes

if TYPE_CHECKING:
    import pandas as pd

    from robench.results import Store, StoredRecord

__all__ = ["CSV_NAME", "PAGE_NAME", "board_rows", "board_text", "publish", "write_tables"]

CSV_NAME = "leaderboard.csv"
PAGE_NAME = "index.html"

_HIDDEN = ("worst_class_robust_acc", "robust_acc", "clean_acc")
"""Accuracies that are no attack's, or are shown elsewhere."""


def publish(store: Store, records: list[StoredRecord], *, plots: bool = True) -> list[Path]:
    """Write the leaderboard of all ``records`` into the store's folder, and what shows it.

    Beside it go the findings (``findings.csv`` for attention, ``associations.csv`` for features
    over models) and ``per_class.csv``.

    Args:
        store: where sample panels are read from.
        records: all of the store's, read once.
        plots: also draw the figures, and the page that shows them.

    Returns:
        The files, the CSV first.

    Raises:
        StoreError: a file cannot be written.
    """
    frame = build_leaderboard(records)
    csv = write_leaderboard(frame, store.folder / CSV_NAME)
    results = collect(records)
    findings, associations = attention_findings(results), representation_findings(results)
    classes = class_table(results)
    tables = write_tables(
        store.folder, findings=findings, associations=associations, per_class=classes
    )
    if not plots:
        return [csv, *tables]
    # Loads matplotlib, which takes half a second.
    from robench.reporting.plots import render_plots

    figures = render_plots(results, store.folder / "plots", store=store)
    page = write_page(
        store.folder / PAGE_NAME,
        frame,
        figures=[path for path in figures if path.suffix == ".png"],
        findings=findings,
        associations=associations,
        classes=worst_classes(classes),
    )
    return [csv, page, *tables, *figures]


def write_tables(folder: Path, **frames: pd.DataFrame) -> list[Path]:
    """Write each frame as ``NAME.csv``; what is undefined is empty.

    Raises:
        StoreError: a file cannot be written.
    """
    files = []
    for name, frame in frames.items():
        path = folder / f"{name}.csv"
        atomic_write(path, frame.to_csv(index=False, lineterminator="\n").encode())
        files.append(path)
    return files


def board_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The leaderboard's rows as dictionaries."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def board_text(frame: pd.DataFrame) -> str:
    """The leaderboard for a terminal: a table for each group of comparable rows."""
    if frame.empty:
        return "No results."
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in board_rows(frame):
        title = (
            f"{row['dataset']} {row['norm']} eps {row['eps']}, n = {number(row['n'])}, "
            f"seed {number(row['seed'])} (data {str(row['data_sha256'])[:8]})"
        )
        groups.setdefault(title, []).append(row)
    return "\n\n".join(f"{title}\n{_group_table(rows)}" for title, rows in groups.items())


def _group_table(rows: list[dict[str, Any]]) -> str:
    attacks = [
        name
        for name in rows[0]
        if name.endswith("_acc")
        and name not in _HIDDEN
        and any(number(row[name]) != "–" for row in rows)
    ]
    header = ["rank", "model", "robust_acc", "95 % interval", "clean_acc"]
    header += [name.removesuffix("_acc").replace("_", "-") for name in attacks]
    header += ["worst class", "validity"]
    body = []
    for row in rows:
        interval = f"{number(row['robust_acc_low'])} – {number(row['robust_acc_high'])}"
        worst = f"{number(row['worst_class_robust_acc'])} ({row['worst_class']})"
        body.append(
            [
                number(row["rank"]),
                str(row["model"]),
                number(row["robust_acc"]),
                interval,
                number(row["clean_acc"]),
                *(number(row[name]) for name in attacks),
                worst,
                str(row["validity"]),
            ]
        )
    return format_table(header, body)
