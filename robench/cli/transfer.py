"""``robench transfer``: adversarial inputs of each model, judged on every other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import (
    CLUSTER,
    CsvFile,
    JsonFlag,
    PlotsFlag,
    model_names,
    option,
    request_options,
)
from robench.errors import UsageError
from robench.request import Request

if TYPE_CHECKING:
    from pandas import DataFrame


@request_options(
    without=("suite", "settings", "goal", "targets", "save_adversarial", "shard", "trace", *CLUSTER)
)
def transfer(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="As for `robench run`, two or more; none: all of the zoo for the data set.",
            autocompletion=model_names,
        ),
    ] = None,
    *,
    request: Request,
    attack: Annotated[
        str | None,
        option("NAME", "What makes the inputs: an entry of a suite of robench's; default: pgd-20."),
    ] = None,
    suite: Annotated[
        str | None,
        option("SUITE", "In place of one attack all of a suite's, each with its matrix."),
    ] = None,
    ensemble: Annotated[
        list[str] | None,
        option(
            "A,B,…",
            "Also make inputs for these models together; may be given several times.",
        ),
    ] = None,
    mean: Annotated[
        str,
        option("[logits|probabilities]", "What an ensemble answers with, the mean of its models'."),
    ] = "logits",
    csv: CsvFile = None,
    plots: PlotsFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Judge the adversarial inputs of each model on every other, and show the matrix.

    Inputs that the results folder keeps are read, others are made as by `robench run
    --save-adversarial`. Rows are what they were made for, columns the models that judged them; on the
    diagonal are the models' own. What breaks a model counts in its best known accuracy, and `robench
    validate` looks for models that others' inputs break more often than their own.
    """
    # Everything below loads torch, which --help does without.
    from robench.cli.printing import print_result
    from robench.cli.run_display import RunDisplay
    from robench.files import atomic_write
    from robench.inspection.transfer import attack_suite, prepare_transfer
    from robench.models.zoo import zoo_cards
    from robench.reporting.board import rows_of
    from robench.reporting.export import csv_bytes
    from robench.reporting.publish import publish
    from robench.reporting.transfers import transfer_matrix
    from robench.results import Store

    if suite is not None and attack is not None:
        raise UsageError("--attack and --suite both say what makes the inputs", hint="Choose one")
    chosen = attack_suite(attack or "pgd-20") if suite is None else suite
    request = replace(request, models=tuple(models or ()), suite=chosen)
    ensembles = [[name.strip() for name in names.split(",")] for names in ensemble or ()]
    prepared = prepare_transfer(request, ensembles, mean)
    with RunDisplay(prepared.jobs) as display:
        found = prepared.run(display)
    table, matrices = found.to_frame(), transfer_matrix(found.results)
    store = Store(request.folder)
    files = publish(store, plots=plots, cards=zoo_cards()).files
    if csv is not None:
        atomic_write(csv, csv_bytes(matrices))
        files.append(csv)
    content = {
        "transfers": rows_of(table),
        "matrix": rows_of(matrices),
        "files": [str(path) for path in files],
    }
    print_result(content, matrices_text(matrices), as_json=as_json)
    if not as_json:
        typer.echo(f"\nWritten: {files[0]} and {len(files) - 1} more", err=True)


def matrices_text(matrices: DataFrame) -> str:
    """For a terminal: a matrix for each attack."""
    from robench.formatting import format_table, number
    from robench.reporting.board import rows_of

    parts = []
    for (group, attack), block in matrices.groupby(["group", "attack"], sort=False):
        head = (
            f"{group}\nrobust accuracy in %; rows: what {attack} was made for, columns: who judged"
        )
        names = [name for name in block.columns[3:] if block[name].notna().any()]
        header = ("", *(name.removesuffix("_acc") for name in names))
        rows = [(row["source"], *(number(row[name]) for name in names)) for row in rows_of(block)]
        parts.append(f"{head}\n{format_table(header, rows)}")
    return "\n\n".join(parts)
