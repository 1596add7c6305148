"""``robench train``: make a checkpoint with a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.options import DeviceOption
from robench.cli.settings import parse_settings
from robench.errors import UsageError

__all__ = ["train"]


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="None: list the recipes.")
    ] = None,
    dataset: Annotated[
        str, typer.Option("--dataset", metavar="NAME", help="Data set, folder or file.")
    ] = "digits",
    arch: Annotated[
        str | None,
        typer.Option("--arch", metavar="NAME", help="Architecture; default: the data set's."),
    ] = None,
    arch_arg: Annotated[
        list[str] | None,
        typer.Option("--arch-arg", metavar="NAME=VALUE", help="Argument of the architecture."),
    ] = None,
    threat_model: Annotated[
        str | None,
        typer.Option(
            "--threat-model", metavar="NORM-EPS", help="Linf-8/255; default: the data set's."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", metavar="N", min=1)] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="SEED")] = 0,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Default: the recipe's.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="MODEL", help="For recipes that learn from a model."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of training or recipe."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Default: model_zoo/DATASET/THREAT/NAME."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the folder holds.", show_default=False)
    ] = False,
    device: DeviceOption = "auto",
    devices: Annotated[int, typer.Option("--devices", metavar="N", min=1)] = 1,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="Where downloaded data sets are kept."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch missing data.", show_default=False)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress bar.", show_default=False)
    ] = False,
) -> None:
    """Train a network; write its card and weights.

    An interrupted run goes on when the same command is given again.
    """
    if recipe is None:
        _list_recipes()
        return
    overrides = parse_settings(settings or [], "--set")
    if epochs is not None:
        if "epochs" in overrides:
            raise UsageError("epochs are given twice", hint="Use --epochs or --set epochs=N")
        overrides["epochs"] = epochs
    arguments = parse_settings(arch_arg or [], "--arch-arg")
    if arguments and arch is None:
        raise UsageError("--arch-arg without --arch", hint="Name the architecture with --arch")

    from robench import defenses  # torch
    from robench.records import ArchitectureSpec

    job = defenses.resolve(
        recipe,
        defenses.TrainingSplits.load(dataset, root=data, download=download),
        architecture=None if arch is None else ArchitectureSpec(name=arch, arguments=arguments),
        threat_model=threat_model,
        folder=out,
        name=name,
        seed=seed,
        device=device,
        devices=devices,
        teacher=teacher,
        settings=overrides,
    )
    typer.echo(defenses.train(job, overwrite=overwrite, progress=not quiet))


def _list_recipes() -> None:
    from robench.cli.output import print_table
    from robench.defenses.catalogue import RECIPES

    print_table(("recipe", ""), [(name, RECIPES.summary(name)) for name in RECIPES])
