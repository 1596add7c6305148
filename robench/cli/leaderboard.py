"""``robench leaderboard``: rebuild the leaderboard from stored records."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import (
    CsvFile,
    JsonFlag,
    PlotsFlag,
    ResultsFolder,
    filter_options,
    flag,
    option,
)
from robench.cli.printing import show_board
from robench.errors import UsageError
from robench.files import atomic_write
from robench.request import Request
from robench.results import RecordFilter

if TYPE_CHECKING:
    from robench.reporting.board import Board
    from robench.reporting.published import Publication


@filter_options
def leaderboard(
    results: ResultsFolder = Path("results"),
    *,
    wanted: RecordFilter,
    suite: Annotated[str | None, option("SUITE", "Only this suite's attacks.")] = None,
    together: Annotated[
        bool,
        flag(
            "Rank different data, eps or n as one, although they are not comparable.", "--together"
        ),
    ] = False,
    csv: CsvFile = None,
    plots: PlotsFlag = True,
    samples: Annotated[
        bool,
        flag(
            "Read the clean samples of all records' data sets, and keep small pictures of them in "
            "the folder, for the page.",
            "--samples",
        ),
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print the leaderboard and rebuild its files in the results folder from the records.

    With a filter, --suite or --together only --csv is written: the folder's own files always
    show all of its records. What was attacked with targets, and what was corrupted, has a table of
    its own, which --csv writes with --goal targeted, or --goal corrupted.
    """
    whole = wanted == RecordFilter() and suite is None and not together
    if samples and not (whole and plots):
        raise UsageError(
            "--samples is for the page of all records", hint="Leave out filters and --no-plots"
        )
    if whole:
        shown = _whole(results, plots=plots, samples=samples)
        board, files = shown.board, shown.files
        if csv is not None:
            atomic_write(csv, files[0].read_bytes())
    else:
        board, files = _some(results, wanted, suite, csv, together=together), []
    show_board(board, [*files, *([] if csv is None else [csv])], as_json=as_json)


def _whole(results: Path, *, plots: bool, samples: bool) -> Publication:
    """All records as they are shown, once the folder's files show them too."""
    from robench.models.zoo_folders import card_files
    from robench.reporting.published import Published

    cards: Iterable[Path] = ()
    with suppress(UsageError):  # ROBENCH_ZOO names no folder: no card is shown
        cards = card_files()
    if not samples and (found := Published(results, cards).find(plots=plots)) is not None:
        return found
    # What follows loads pandas and reads all records.
    from robench.models.zoo import zoo_cards
    from robench.reporting.publish import publish
    from robench.results import Store

    store = Store.existing(results)
    if samples:
        # Reads the samples, and so loads torch.
        from robench.inspection.shown_samples import keep_shown_samples

        specs = [stored.record.dataset for stored in store.records()]
        for gap in keep_shown_samples(store, specs, Request()):
            typer.echo(f"robench: warning: {gap}", err=True)
    return publish(store, plots=plots, cards=zoo_cards())


def _some(
    results: Path, wanted: RecordFilter, suite: str | None, csv: Path | None, *, together: bool
) -> Board:
    """Some of the records as they are shown, written nowhere but to ``csv``."""
    from robench.attacks.suites import load_suite
    from robench.reporting.board import shown_board
    from robench.reporting.corruptions import corruption_table
    from robench.reporting.export import csv_bytes
    from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
    from robench.reporting.model_results import collect
    from robench.reporting.targeted import targeted_table
    from robench.results import Store
    from robench.results.bounds import known_bounds
    from robench.results.validations import Validations

    chosen = None if suite is None else load_suite(suite, trust_code=True)  # nothing is built of it
    store = Store.existing(results)
    records = list(store.records())
    frame = build_leaderboard(
        records,
        wanted,
        suite=chosen,
        together=together,
        bounds=known_bounds(store),
        validations=Validations(store).all(),
    )
    tables = {}
    for goal, table in (("targeted", targeted_table), ("corrupted", corruption_table)):
        found = collect(records, replace(wanted, goal=wanted.goal or goal), suite=chosen)
        tables[goal] = table([r for r in found if r.threat_model.goal == goal])
    if csv is not None:
        own = tables.get(wanted.goal or "")
        atomic_write(csv, leaderboard_csv(frame) if own is None else csv_bytes(own))
    return shown_board(frame, tables["targeted"], tables["corrupted"])
