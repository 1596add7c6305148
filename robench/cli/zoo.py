"""``robench zoo``: the models that have a card."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robench.cli.options import (
    SAMPLES,
    WEIGHTS,
    JsonFlag,
    check_one_radius,
    flag,
    model_names,
    option,
    parse_name_values,
    request_options,
)
from robench.request import Request

if TYPE_CHECKING:
    from robench.inspection.zoo_models import Rechecked
    from robench.models.zoo import LocatedCard

zoo_app = typer.Typer(
    help="The models that have a card: list, show, add, verify.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_DatasetFilter = Annotated[
    str | None, option("NAME", "Only models for this data set.", "--dataset")
]


@zoo_app.command("list")
def list_models(dataset: _DatasetFilter = None, as_json: JsonFlag = False) -> None:
    """List the models of all zoo folders."""
    from robench.cli.printing import print_result
    from robench.errors import CardError
    from robench.formatting import format_table
    from robench.models.zoo import list_cards
    from robench.models.zoo_folders import zoo_folders

    problems: list[CardError] = []
    cards = list_cards(dataset, problems=problems)
    if cards or as_json:
        rows = [
            (card.id, card.defense, card.architecture.name, card.weights.sha256[:8], code)
            for card, code in ((located.card, _code(located)) for located in cards)
        ]
        table = format_table(("id", "defense", "architecture", "weights", ""), rows)
        print_result([_content(located) for located in cards], table, as_json=as_json)
    else:
        folders = ", ".join(map(str, zoo_folders())) or "no folder"
        typer.echo(f"No models{f' for {dataset}' if dataset else ''} in {folders}.", err=True)
    for problem in problems:
        typer.echo(f"robench: warning: {problem}", err=True)


@zoo_app.command()
def show(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Id, short name, or card.", autocompletion=model_names
        ),
    ],
    dataset: _DatasetFilter = None,
    as_json: JsonFlag = False,
) -> None:
    """Print a model's card."""
    from robench.cli.printing import print_result
    from robench.models.cards import format_card
    from robench.models.zoo import find_card

    located = find_card(model, dataset)
    about = [located.id, str(located.path), *filter(None, [_code(located)])]
    head = "".join(f"# {line}\n" for line in about)
    text = f"{head}\n{format_card(located.card)}".rstrip()
    print_result(_content(located), text, as_json=as_json)


@zoo_app.command()
@request_options(only=(*SAMPLES, *WEIGHTS, "norm", "eps"))
def add(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The weights file.")],
    *,
    name: Annotated[str | None, option("NAME", "Default: the file's.")] = None,
    defense: Annotated[str, option("NAME", "Recipe; standard for none.")] = "unknown",
    zoo: Annotated[Path, option("FOLDER", "Where the model is put.")] = Path("model_zoo"),
    provenance: Annotated[
        list[str] | None, option("NAME=VALUE", "Provenance, as paper=… or year=2026.", "--about")
    ] = None,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Give a weights file a card: hash, state dict and prefix found, clean accuracy measured.

    --arch, --dataset (what it classifies) and --eps are needed. The doctor looks at the model
    too; what it finds is shown, and kept in the card.
    """
    about = parse_name_values(provenance or [], "--about")
    # Loads torch, which --help does without.
    from robench.cli.output import findings_text
    from robench.cli.printing import print_result
    from robench.formatting import number
    from robench.inspection.zoo_models import add_model

    check_one_radius(request)
    request = replace(request, models=(checkpoint,))
    added, found = add_model(request, zoo, name=name, defense=defense, provenance=about)
    card = added.card
    measured, examination = card.provenance.measured, card.provenance.examination
    accuracy = f"clean_acc {number(measured['clean_acc'], 2)} % (n = {measured['n']})"
    examined = f"doctor, on {examination.n if examination else 0} of them"
    text = f"{card.id}: {accuracy}\n{findings_text(examined, found)}\n{added.path}"
    print_result(_content(added), text, as_json=as_json)


@zoo_app.command()
@request_options(only=("data_root", "dataset_options"))
def verify(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Which models; none: all of them.", autocompletion=model_names
        ),
    ] = None,
    dataset: _DatasetFilter = None,
    accuracy: Annotated[
        bool, flag("Measure the recorded clean accuracy again.", "--accuracy")
    ] = False,
    *,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Load every model: card, hash and weights must agree. Exit code 2 if one does not."""
    # Loads torch, which --help does without.
    from robench.cli.printing import print_result
    from robench.errors import CardError
    from robench.formatting import format_table
    from robench.inspection.zoo_models import Rechecked, recheck  # torch
    from robench.models.zoo import find_card, list_cards

    problems: list[CardError] = []
    if models:
        cards = [find_card(name, dataset) for name in models]
    else:
        cards = list_cards(dataset, problems=problems)
    found = [Rechecked(str(problem.where), False, str(problem)) for problem in problems]
    found += [recheck(located, request, accuracy=accuracy) for located in cards]
    table = format_table(("model", "verdict"), [(item.id, _verdict(item)) for item in found])
    print_result([asdict(item) for item in found], table, as_json=as_json)
    if not all(item.ok for item in found):
        raise typer.Exit(2)


def _content(located: LocatedCard) -> dict[str, Any]:
    card = located.card.model_dump(mode="json")
    return {"id": located.id, "card": card, "path": str(located.path), "code": _code(located)}


def _code(located: LocatedCard) -> str:
    """What a list says of a card that would run code of its author's choice."""
    if not located.card.architecture.names_code:
        return ""
    return "names code, trusted" if located.trusted else "names code"


def _verdict(item: Rechecked) -> str:
    from robench.formatting import number

    if not item.ok or item.accuracy == "not asked":
        return "ok" if item.ok else str(item.problem)
    if item.accuracy == "agrees":
        return f"ok; clean_acc {number(item.clean_acc, 2)} % (n = {item.n}), as recorded"
    if item.accuracy == "no data":
        return f"ok; accuracy not measured: {item.problem}"
    return "ok; its card records no accuracy"
