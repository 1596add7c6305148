"""What people read of a results folder and of a leaderboard. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robench.cli.output import format_table, print_json
from robench.files import atomic_write
from robench.formatting import number
from robench.reporting.catalogue import reports
from robench.reporting.leaderboard import build_leaderboard, write_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.page import write_page

if TYPE_CHECKING:
    import pandas as pd

    from robench.results import Store, StoredRecord

__all__ = ["CSV_NAME", "PAGE_NAME", "board_text", "publish", "show_board", "write_tables"]

CSV_NAME = "leaderboard.csv"
PAGE_NAME = "index.html"

_HIDDEN = ("worst_class_robust_acc", "robust_acc", "clean_acc")
"""Accuracies that are no attack's, or are shown elsewhere."""


def publish(store: Store, records: list[StoredRecord], *, plots: bool = True) -> list[Path]:
    """Write the leaderboard of all ``records`` into the store's folder, and what shows it.

    Beside it go the tables and figures of :data:`robench.reporting.catalogue.REPORTS`.

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
    tables = {name: report(results) for name, report in reports("table").items()}
    written = write_tables(store.folder, **tables)
    if not plots:
        return [csv, *written]
    # Loads matplotlib, which takes half a second.
    from robench.reporting.plots import render_plots

    figures = render_plots(results, store.folder / "plots", store=store)
    shown = [path for path in figures if path.suffix == ".png"]
    page = write_page(store.folder / PAGE_NAME, frame, figures=shown, tables=tables)
    return [csv, page, *written, *figures]


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


def show_board(frame: pd.DataFrame, files: list[Path], *, as_json: bool) -> None:
    """Print a leaderboard, and which files were written; as JSON with all of its columns."""
    if as_json:
        print_json({"leaderboard": _rows(frame), "files": [str(path) for path in files]})
        return
    typer.echo(board_text(frame))
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        typer.echo(f"\nWritten: {files[0]}{more}", err=True)


def board_text(frame: pd.DataFrame) -> str:
    """The leaderboard for a terminal: a table for each group of comparable rows."""
    if frame.empty:
        return "No results."
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(frame):
        title = (
            f"{row['dataset']} {row['norm']} eps {row['eps']}, n = {number(row['n'])}, "
            f"seed {number(row['seed'])} (data {str(row['data_sha256'])[:8]})"
        )
        groups.setdefault(title, []).append(row)
    return "\n\n".join(f"{title}\n{_group_table(rows)}" for title, rows in groups.items())


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


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
