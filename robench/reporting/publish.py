"""What people read of a results folder: CSV, figures, page. Needs no torch."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from robench.files import atomic_write
from robench.records import ModelCard
from robench.reporting.board import shown_board
from robench.reporting.catalogue import reports
from robench.reporting.drawing import attempt
from robench.reporting.explorer.pictures import explorer_pictures
from robench.reporting.export import write_tables
from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
from robench.reporting.model_results import ModelResult, collect
from robench.reporting.page import build_page
from robench.reporting.published import Publication, Published
from robench.request import GOALS
from robench.results import RecordFilter, Store
from robench.results.bounds import bounds_files, known_bounds
from robench.results.validations import Validations

CSV_NAME = "leaderboard.csv"
PAGE_NAME = "index.html"


def publish(
    store: Store,
    *,
    plots: bool = True,
    cards: Mapping[Path, ModelCard | None] = MappingProxyType({}),
) -> Publication:
    """Write the leaderboard of all records of a store into its folder, and what shows it.

    Beside it go the tables of :data:`robench.reporting.catalogue.REPORTS` and, with ``plots``, the
    figures and the page that shows them, with those of ``cards`` (by file, as
    :func:`robench.models.zoo.zoo_cards` gives them) that are of its models. What would come out the same
    is left, and then no record is read.

    Returns:
        The files, the CSV first, and the leaderboard as it is shown.

    Raises:
        StoreError: a file cannot be written.
        ContradictionError: a sample is verified and broken at once; nothing is written.
    """
    published = Published(store.folder, cards)
    if (found := published.find(plots=plots)) is not None:
        return found
    records = list(store.records())
    validations, bounds = list(Validations(store).all()), known_bounds(store)
    frame = build_leaderboard(records, bounds=bounds, validations=validations)
    csv = store.folder / CSV_NAME
    atomic_write(csv, leaderboard_csv(frame))
    results = {goal: collect(records, RecordFilter(goal=goal)) for goal in GOALS}
    made = {
        name: (report, report(results[report.goal]))
        for name, report in reports("table").items()
        # A folder without targeted attacks says nothing of them.
        if report.goal == "untargeted" or results[report.goal] or _is_there(store, name)
    }
    tables = {
        name: frame
        for name, (report, frame) in made.items()
        if not report.if_any or len(frame) or _is_there(store, name)
    }
    written = write_tables(store.folder, **tables)
    board = shown_board(frame, tables.get("targeted"), tables.get("corruptions"))
    if not plots:
        return Publication([csv, *written], board)
    shown_results = [result for part in results.values() for result in part]
    drawn = attempt(partial(_figures, shown_results, store))
    figures = drawn or []
    page = store.folder / PAGE_NAME
    content = build_page(
        frame,
        figures=[path for path in figures if path.suffix == ".png" and not _is_of_a_model(path)],
        tables=tables,
        validations=validations,
        results=results["untargeted"],
        cards=[card for card in cards.values() if card is not None],
        pictures=explorer_pictures(results["untargeted"], store),
    )
    atomic_write(page, content.encode())
    publication = Publication([csv, page, *written, *figures], board)
    read = (len(records), len(validations), len(bounds))
    there = (len(store.keys()), len(Validations(store).paths()), len(bounds_files(store)))
    # What is damaged, or could not be drawn, is told of every time.
    if drawn is not None and read == there:
        published.remember(publication)
    return publication


def _is_of_a_model(figure: Path) -> bool:
    # The page draws these itself, and a figure for each of many models would make it heavy.
    own = figure.stem.startswith(("confusion_", "samples_"))
    return own and figure.stem not in reports("figure")


def _is_there(store: Store, table: str) -> bool:
    return (store.folder / f"{table}.csv").exists()


def _figures(results: list[ModelResult], store: Store) -> list[Path]:
    from robench.reporting.plots.render import render_plots

    return render_plots(results, store.folder / "plots")
