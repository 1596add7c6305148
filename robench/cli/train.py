"""``robench train``: make a checkpoint with a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.options import (
    flag,
    is_quiet,
    option,
    parse_name_values,
    request_options,
)
from robench.errors import UsageError
from robench.request import DEFAULT_DATASET, Request


@request_options(
    only=(
        "dataset",
        "architecture",
        "architecture_arguments",
        "seed",
        "device",
        "data_root",
        "download",
    )
)
def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="None: list the recipes.")
    ] = None,
    *,
    request: Request,
    threat_model: Annotated[
        str | None, option("NORM-EPS", "Linf-8/255; default: the data set's.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", min=1)] = None,
    name: Annotated[str | None, option("NAME", "Default: the recipe's.")] = None,
    teacher: Annotated[str | None, option("MODEL", "For recipes that learn from a model.")] = None,
    settings: Annotated[
        list[str] | None, option("NAME=VALUE", "Any setting of training or recipe.", "--set")
    ] = None,
    out: Annotated[
        Path | None, option("FOLDER", "Default: model_zoo/DATASET/THREAT/NAME.", "--out", "-o")
    ] = None,
    overwrite: Annotated[bool, flag("Replace what the folder holds.", "--overwrite")] = False,
    devices: Annotated[int, typer.Option("--devices", metavar="N", min=1)] = 1,
) -> None:
    """Train a network; write its card and weights.

    Data set and architecture are by default digits and the data set's own. An interrupted run
    goes on when the same command is given again.
    """
    if recipe is None:
        from robench.defenses.catalogue import RECIPES
        from robench.formatting import format_table

        typer.echo(
            format_table(("recipe", ""), [(name, RECIPES.summary(name)) for name in RECIPES])
        )
        return
    overrides = parse_name_values(settings or [], "--set")
    if epochs is not None:
        if "epochs" in overrides:
            raise UsageError("epochs are given twice", hint="Use --epochs or --set epochs=N")
        overrides["epochs"] = epochs
    if request.architecture_arguments and request.architecture is None:
        raise UsageError("--arch-arg without --arch", hint="Name the architecture with --arch")

    from robench import defenses  # torch
    from robench.records import ArchitectureSpec, parse

    architecture = None
    if request.architecture is not None:
        given = {"name": request.architecture, "arguments": dict(request.architecture_arguments)}
        architecture = parse(ArchitectureSpec, given, UsageError, where="--arch-arg")
    dataset = DEFAULT_DATASET if request.dataset is None else str(request.dataset)
    job = defenses.resolve(
        recipe,
        defenses.TrainingSplits.load(dataset, root=request.data_root, download=request.download),
        architecture=architecture,
        threat_model=threat_model,
        folder=out,
        name=name,
        seed=request.seed,
        device=str(request.device),
        devices=devices,
        teacher=teacher,
        settings=overrides,
    )
    typer.echo(defenses.train(job, overwrite=overwrite, progress=not is_quiet()))
