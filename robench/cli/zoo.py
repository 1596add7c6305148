"""``robench zoo``: the models that have a card."""

from __future__ import annotations

from typing import Annotated

import typer

from robench.cli.options import JsonFlag
from robench.cli.output import print_json, print_table

__all__ = ["zoo_app"]

zoo_app = typer.Typer(
    help="The models that have a card: list, show, verify.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_DatasetFilter = Annotated[
    str | None, typer.Option("--dataset", metavar="NAME", help="Only models for this data set.")
]


@zoo_app.command("list")
def list_models(dataset: _DatasetFilter = None, as_json: JsonFlag = False) -> None:
    """List the models of all zoo folders."""
    from robench.errors import CardError
    from robench.models.zoo import list_cards, zoo_folders

    problems: list[CardError] = []
    cards = list_cards(dataset, problems=problems)
    if as_json:
        print_json(
            [
                {
                    "id": located.id,
                    "card": located.card.model_dump(mode="json"),
                    "path": str(located.path),
                }
                for located in cards
            ]
        )
    elif cards:
        print_table(
            ("id", "defense", "architecture", "weights"),
            [
                (
                    located.id,
                    located.card.defense,
                    located.card.architecture.name,
                    located.card.weights.sha256[:8],
                )
                for located in cards
            ],
        )
    else:
        folders = ", ".join(map(str, zoo_folders())) or "no folder"
        typer.echo(f"No models{f' for {dataset}' if dataset else ''} in {folders}.", err=True)
    for problem in problems:
        typer.echo(f"robench: warning: {problem}", err=True)


@zoo_app.command()
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Id, short name, or card.")],
    dataset: _DatasetFilter = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a model's card."""
    from robench.models.cards import format_card
    from robench.models.zoo import find_card

    located = find_card(model, dataset)
    if as_json:
        content = located.card.model_dump(mode="json")
        print_json({"id": located.id, "card": content, "path": str(located.path)})
    else:
        typer.echo(f"# {located.id}\n# {located.path}\n\n{format_card(located.card)}".rstrip())


@zoo_app.command()
def verify(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Which models; none: all of them."),
    ] = None,
    dataset: _DatasetFilter = None,
    as_json: JsonFlag = False,
) -> None:
    """Load every model: card, hash and weights must agree. Exit code 2 if one does not."""
    from robench.errors import CardError, RobenchError
    from robench.models.loading import load_model  # torch
    from robench.models.zoo import find_card, list_cards

    problems: list[CardError] = []
    if models:
        cards = [find_card(name, dataset) for name in models]
    else:
        cards = list_cards(dataset, problems=problems)
    found: list[dict[str, object]] = [
        {"id": str(problem.where), "ok": False, "problem": str(problem)} for problem in problems
    ]
    for located in cards:
        try:
            load_model(located)
        except RobenchError as error:
            found.append({"id": located.id, "ok": False, "problem": str(error)})
        else:
            found.append({"id": located.id, "ok": True, "problem": None})
    if as_json:
        print_json(found)
    else:
        rows = [(str(f["id"]), "ok" if f["ok"] else str(f["problem"])) for f in found]
        print_table(("model", "verdict"), rows)
    if not all(item["ok"] for item in found):
        raise typer.Exit(2)
