"""``robench leaderboard``: rebuild the leaderboard from stored records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.options import (
    CsvFile,
    DatasetFilter,
    EpsFilter,
    JsonFlag,
    NFilter,
    NormFilter,
    PlotsFlag,
    ResultsFolder,
    SeedFilter,
)
from robench.cli.output import print_json

__all__ = ["leaderboard"]


def leaderboard(
    results: ResultsFolder = Path("results"),
    dataset: DatasetFilter = None,
    norm: NormFilter = None,
    eps: EpsFilter = None,
    n: NFilter = None,
    seed: SeedFilter = None,
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="SUITE", help="Only this suite's attacks.")
    ] = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Rank different data, eps or n as one, although they are not comparable.",
            show_default=False,
        ),
    ] = False,
    csv: CsvFile = None,
    plots: PlotsFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Print the leaderboard and rebuild its files in the results folder from the records.

    With a filter, --suite or --together only --csv is written: the folder's own files always
    show all of its records.
    """
    from robench.attacks.suites import load_suite
    from robench.cli.publishing import board_rows, board_text, publish
    from robench.cli.stores import existing_store
    from robench.reporting.leaderboard import build_leaderboard, write_leaderboard

    filters = {"dataset": dataset, "norm": norm, "eps": eps, "n": n, "seed": seed}
    chosen = None if suite is None else load_suite(suite, trust_code=True)  # nothing is built of it
    store = existing_store(results)
    records = list(store.records())
    frame = build_leaderboard(
        records,
        dataset=dataset,
        norm=norm,
        eps=eps,
        n=n,
        seed=seed,
        suite=chosen,
        together=together,
    )
    whole = chosen is None and not together and all(v is None for v in filters.values())
    files = publish(store, records, plots=plots) if whole else []
    if csv is not None:
        files.append(write_leaderboard(frame, csv))
    if as_json:
        print_json({"leaderboard": board_rows(frame), "files": [str(path) for path in files]})
    else:
        typer.echo(board_text(frame))
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            typer.echo(f"\nWritten: {files[0]}{more}", err=True)
