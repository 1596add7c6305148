"""``robench reproduce``: are published numbers found again?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import JsonFlag, flag, model_names, option, request_options
from robench.errors import UsageError
from robench.request import Request

if TYPE_CHECKING:
    from robench.reproduction import Finding


@request_options(
    only=(
        *("dataset", "data_root", "dataset_options", "download", "suite", "settings", "n"),
        *("norm", "eps", "seed", "trust_pickle", "trust_code", "device", "batch_size", "workers"),
    )
)
def reproduce(
    claimed: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|MODEL",
            help="A results folder, or a model whose card gives figures.",
            autocompletion=model_names,
        ),
    ],
    results: Annotated[
        Path, option("FOLDER", "Where to measure; what it holds is not run again.")
    ] = Path("reproduced"),
    stored: Annotated[
        bool, flag("Run nothing: hold the folder against what --results holds.", "--stored")
    ] = False,
    *,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Run again what a results folder or a model's card claims, and say what is the same, what agrees
    within its interval, and what differs by how much.

    Of a folder data, attacks, eps, n and seed are those of its records; of a card --suite and the like
    say what is run. Exit code 0: all found again; 1: something differs; 2: nobody can tell of
    something, or an error.
    """
    from robench.cli.output import print_result
    from robench.results import Store

    request = replace(request, results=results)
    is_folder = os.path.isdir(Path(claimed) / "records")
    if is_folder and results.resolve() == Path(claimed).resolve():
        raise UsageError(
            f"{claimed} is what is claimed and cannot be what is measured",
            hint="Name another folder with --results",
        )
    if stored and not is_folder:
        raise UsageError(
            "--stored compares two folders", where=claimed, hint="Name a results folder"
        )
    from robench import reproduction  # torch

    if stored:
        records, measured = Store.existing(claimed).records(), Store.existing(results).records()
        found = reproduction.compare_records(list(records), list(measured))
    else:
        from robench.cli.run_display import RunDisplay

        if is_folder:
            claims = list(Store.existing(claimed).records())
            with RunDisplay(len(claims)) as display:
                found = reproduction.reproduce_records(claims, request, listener=display)
        else:
            with RunDisplay(0) as display:
                found = reproduction.reproduce_card(claimed, request, listener=display)
    print_result([asdict(finding) for finding in found], findings_text(found), as_json=as_json)
    raise typer.Exit(reproduction.exit_code(found))


def findings_text(found: Sequence[Finding]) -> str:
    """A line for each number, and how many there are of each verdict."""
    from robench.formatting import fixed, format_table, number

    rows = []
    for item in found:
        limits = (
            ""
            if item.low is None or item.high is None
            else (f"{fixed(item.low, 1)} … {fixed(item.high, 1)}")
        )
        changed = "" if item.samples is None else str(item.samples)
        values = (number(item.claimed, 2), number(item.measured, 2), limits, changed)
        rows.append((item.model, item.under, item.quantity, *values, item.verdict, item.why))
    header = ("model", "under", "number", "claimed", "measured", "95 %", "samples", "verdict", "")
    counts = Counter(item.verdict for item in found)
    said = ", ".join(f"{verdict}: {count}" for verdict, count in sorted(counts.items()))
    return f"{format_table(header, rows)}\n\n{len(found)} numbers: {said}"
