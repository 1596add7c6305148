"""``robench reproduce``: are published numbers found again?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import (
    JsonFlag,
    check_one_radius,
    flag,
    model_names,
    option,
    request_options,
)
from robench.errors import UnknownNameError, UsageError
from robench.registry import unknown_name
from robench.request import Request

if TYPE_CHECKING:
    from robench.reproduction import Finding
    from robench.reproduction.papers import PaperTable


@request_options(
    only=(
        *("dataset", "data_root", "dataset_options", "download", "suite", "settings", "n"),
        *("norm", "eps", "seed", "trust_pickle", "trust_code", "device", "batch_size", "workers"),
    )
)
def reproduce(
    context: typer.Context,
    claimed: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER|MODEL|PAPER",
            help="A results folder; a model whose card gives figures; or ancra, agkd-bml or aerp, a paper.",
            autocompletion=model_names,
        ),
    ],
    results: Annotated[
        Path | None,
        option(
            "FOLDER",
            "Where to measure; what it holds is not run again. Default: reproduced. Of a paper where "
            "its models' records are; default: results.",
        ),
    ] = None,
    stored: Annotated[
        bool, flag("Run nothing: hold the folder against what --results holds.", "--stored")
    ] = False,
    *,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Run again what a results folder or a model's card claims, and say what is the same, what agrees
    within its interval, and what differs by how much.

    Of a folder data, attacks, eps and seed are those of its records; with --n only the first samples of
    each are attacked, which have to have the very verdicts that are recorded of them. Of a card --suite
    and the like say what is run. Of a paper nothing is run: its table stands beside what was measured of
    the recipe's models, with the reasons for which the two differ; the models of those names are given by
    their ids. Exit code 0: all found again; 1: something differs; 2: nobody can tell of something, or an
    error.
    """
    from robench.cli.printing import print_result
    from robench.reproduction import PAPERS, exit_code, reproduce_paper
    from robench.results import Store

    is_folder = os.path.isdir(Path(claimed) / "records")
    if claimed in PAPERS and not is_folder and not stored:
        _refuse(context, (), "of a paper nothing is run")
        table = reproduce_paper(claimed, Store.existing(results).folder if results else "results")
        found = list(table.findings())
        print_result([asdict(item) for item in found], paper_text(table), as_json=as_json)
        raise typer.Exit(exit_code(found))
    results = results or Path("reproduced")
    if stored and not is_folder:
        raise UsageError(
            "--stored compares two folders", where=claimed, hint="Name a results folder"
        )
    if is_folder:
        _refuse(
            context, _OF_A_FOLDER, "data, attacks, eps and seed are those of the folder's records"
        )
    if stored:
        _refuse(context, (*_SAMPLES, "n"), "with --stored nothing is run")
    of = _of_a_folder if is_folder else _of_a_model
    found = of(claimed, replace(request, results=results), stored)
    print_result([asdict(finding) for finding in found], findings_text(found), as_json=as_json)
    raise typer.Exit(exit_code(found))


def _of_a_folder(claimed: str, request: Request, stored: bool) -> list[Finding]:
    from robench import reproduction  # torch
    from robench.cli.run_display import RunDisplay
    from robench.results import Store

    if request.folder.resolve() == Path(claimed).resolve():
        raise UsageError(
            f"{claimed} is what is claimed and cannot be what is measured",
            hint="Name another folder with --results",
        )
    claims = list(Store.existing(claimed).records())
    if not claims:
        raise UsageError("there are no records to reproduce", where=claimed)
    if stored:
        measured = list(Store.existing(request.folder).records())
        return reproduction.compare_records(claims, measured, request)
    with RunDisplay(len(claims)) as display:
        return reproduction.reproduce_records(claims, request, listener=display)


def _of_a_model(claimed: str, request: Request, _: bool) -> list[Finding]:
    from robench import reproduction  # torch
    from robench.cli.run_display import RunDisplay
    from robench.models.zoo import find_card, list_cards

    check_one_radius(request)
    try:
        find_card(claimed)
    except UnknownNameError as error:
        names = {found.card.name for found in list_cards(problems=[])}
        folders = {path.parent.name for path in Path().glob("*/records")}
        known = sorted({*names, *folders, *reproduction.PAPERS})
        raise unknown_name("results folder, model or paper", claimed, known) from error
    with RunDisplay(0) as display:
        return reproduction.reproduce_card(claimed, request, listener=display)


_SAMPLES = ("dataset", "data_root", "dataset_options", "download", "trust_code")
_OF_A_FOLDER = (*_SAMPLES, "n", "trust_pickle", "device", "batch_size", "workers")


def _refuse(context: typer.Context, taken: Collection[str], why: str) -> None:
    """Refuse options of a run that were typed and say nothing here."""
    for given in context.command.params:
        source = context.get_parameter_source(given.name or "")
        about_run = given.name not in ("claimed", "results", "stored", "as_json", *taken)
        if about_run and source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"{given.opts[0]} says nothing here: {why}", hint="Leave it out")


def findings_text(found: Sequence[Finding]) -> str:
    """A table for each data set and threat model with a line for each number, and how many there are of
    each verdict."""
    from robench.formatting import fixed, format_table, number

    tables: dict[str, list[tuple[str, ...]]] = {}
    for item in found:
        limits = (
            ""
            if item.low is None or item.high is None
            else f"{fixed(item.low, 1)} … {fixed(item.high, 1)}"
        )
        changed = "" if item.samples is None else str(item.samples)
        values = (number(item.claimed, 2), number(item.measured, 2), limits, changed)
        rows = tables.setdefault(item.under, [])
        rows.append((item.model, item.quantity, *values, item.verdict, item.why))
    header = ("model", "number", "claimed", "measured", "95 %", "changed", "verdict", "")
    parts = [f"{under}\n{format_table(header, rows)}" for under, rows in tables.items()]
    counts = Counter(item.verdict for item in found)
    said = ", ".join(f"{verdict}: {count}" for verdict, count in sorted(counts.items()))
    lines = [f"{len(found)} numbers: {said}"]
    for n, of in dict.fromkeys(
        (item.n, item.of) for item in found if item.verdict != "cannot tell"
    ):
        if n is not None and of is not None and n < of:
            lines.append(
                f"They are of the same {n} of {of} samples, each held against what is recorded of that "
                f"very sample; of the other {of - n} they say nothing."
            )
    return "\n\n".join([*parts, "\n".join(lines)])


def paper_text(table: PaperTable) -> str:
    """The paper's lines above what was measured, and why the two differ."""
    from robench.formatting import format_table, number

    paper = table.paper
    seen = [column for model in table.measured for column in model.figures]
    columns = [*paper.columns, *(c for c in dict.fromkeys(seen) if c not in paper.columns)]
    rows = []
    for row in paper.rows:
        ball = "" if row.threat_model is None else str(row.threat_model)
        figures = [number(row.figures.get(column), 2) for column in columns]
        rows.append((f"paper: {row.label}", row.dataset, ball, row.network, "", *figures))
    for model in table.measured:
        card = model.card.card
        figures = [number(model.figures.get(column), 2) for column in columns]
        about = (card.dataset, str(card.threat_model), card.architecture.name)
        rows.append((model.card.id, *about, "" if model.n is None else str(model.n), *figures))
    header = ("", "data", "ball", "network", "n", *(c.removesuffix("_acc") for c in columns))
    lines = [paper.paper, paper.link, f"Figures: {paper.source}", "", format_table(header, rows)]
    for model in table.measured:
        lines += ["", f"{model.card.id} ({model.source}) differs from the paper by"]
        lines += [f"- {reason}" for reason in table.reasons(model)]
    if not table.measured:
        lines += ["", "There is no model of this recipe in the zoo."]
    return "\n".join([*lines, "", f"On the attacks: {paper.attack}"])
