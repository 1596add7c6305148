"""What people read of a results folder: CSV, figures, page. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from robench.files import atomic_write
from robench.reporting.catalogue import reports
from robench.reporting.leaderboard import build_leaderboard, write_leaderboard
from robench.reporting.model_results import collect
from robench.reporting.page import write_page

if TYPE_CHECKING:
    import pandas as pd

    from robench.results import Store, StoredRecord

__all__ = ["CSV_NAME", "PAGE_NAME", "publish", "write_tables"]

CSV_NAME = "leaderboard.csv"
PAGE_NAME = "index.html"


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
    from robench.reporting.plots.render import render_plots

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
