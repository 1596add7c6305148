"""``robench leaderboard``: rebuild the leaderboard from stored records."""

from __future__ import annotations

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
from robench.errors import UsageError
from robench.request import Request

if TYPE_CHECKING:
    from robench.results import RecordFilter


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
    from robench.attacks.suites import load_suite
    from robench.cli.output import show_board
    from robench.files import atomic_write
    from robench.models.zoo import zoo_cards
    from robench.reporting.corruptions import corruption_table
    from robench.reporting.export import csv_bytes
    from robench.reporting.leaderboard import build_leaderboard, leaderboard_csv
    from robench.reporting.model_results import collect
    from robench.reporting.publish import publish
    from robench.reporting.targeted import targeted_table
    from robench.results import RecordFilter, Store
    from robench.results.bounds import known_bounds
    from robench.results.validations import Validations

    chosen = None if suite is None else load_suite(suite, trust_code=True)  # nothing is built of it
    store = Store.existing(results)
    records = list(store.records())
    bounds = known_bounds(store)
    frame = build_leaderboard(
        records,
        wanted,
        suite=chosen,
        together=together,
        bounds=bounds,
        validations=Validations(store).all(),
    )
    with_targets = replace(wanted, goal="targeted") if wanted.goal is None else wanted
    results_with_targets = collect(records, with_targets, suite=chosen)
    targeted = targeted_table([r for r in results_with_targets if r.threat_model.targets])
    when_corrupted = replace(wanted, goal=wanted.goal or "corrupted")
    found = collect(records, when_corrupted, suite=chosen)
    corrupted = corruption_table([r for r in found if r.threat_model.corrupted])
    whole = wanted == RecordFilter() and chosen is None and not together
    if samples and whole and plots:
        # Reads the samples, and so loads torch.
        from robench.inspection.shown_samples import keep_shown_samples

        specs = [stored.record.dataset for stored in records]
        for gap in keep_shown_samples(store, specs, Request()):
            typer.echo(f"robench: warning: {gap}", err=True)
    elif samples:
        raise UsageError(
            "--samples is for the page of all records", hint="Leave out filters and --no-plots"
        )
    files = publish(store, records, plots=plots, cards=zoo_cards()) if whole else []
    if csv is not None:
        own = {"targeted": targeted, "corrupted": corrupted}.get(wanted.goal or "")
        atomic_write(csv, leaderboard_csv(frame) if own is None else csv_bytes(own))
        files.append(csv)
    show_board(frame, files, targeted=targeted, corrupted=corrupted, as_json=as_json)
