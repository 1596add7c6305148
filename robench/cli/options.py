"""The options of the command line, each declared once.

:class:`RequestOptions` has one for every field of :class:`robench.request.Request` that can be
typed. A command that has a parameter ``request`` says with :func:`request_options` which of them
it takes, and gets the request itself; :func:`filter_options` does the same for ``wanted``.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from robench.errors import UsageError
from robench.files import expanded
from robench.request import EXECUTORS, GOALS, PRECISIONS, Request
from robench.results import RecordFilter
from robench.threat_models import parse_radii


def option(metavar: str, text: str, *names: str, min: int | None = None) -> Any:
    """An option with a value; where no names are given, Typer makes one of the parameter's."""
    return typer.Option(*names, metavar=metavar, help=text, min=min)


def flag(text: str, *names: str) -> Any:
    """An option without a value, off unless it is given."""
    return typer.Option(*names, help=text, show_default=False)


JsonFlag = Annotated[bool, flag("Print JSON on stdout instead of text.", "--json")]
CsvFile = Annotated[Path | None, option("FILE", "Also write the table to this file.", "--csv")]
PlotsFlag = Annotated[
    bool,
    typer.Option("--plots/--no-plots", help="Draw the figures and the page, or the CSV alone."),
]
ResultsFolder = Annotated[Path, option("FOLDER", "Folder with the stored records.", "--results")]


class RequestOptions:
    """Field of the request → its option; the default is the field's, unless it is given here."""

    dataset: Annotated[
        str | None,
        option(
            "NAME",
            "Data set by name, a folder of images, or a file of arrays; default: the one "
            "that the models' cards name, or digits.",
        ),
    ]
    split: Annotated[str, option("SPLIT", "Which part of the data set.")]
    data_root: Annotated[
        Path | None,
        option("FOLDER", "Where downloaded data sets are kept.", "--data-root", "--data"),
    ]
    dataset_options: Annotated[
        list[str] | None,
        option(
            "NAME=VALUE",
            "Option of a folder or file, as size=32.",
            "--dataset-option",
            "--data-option",
        ),
    ]
    download: Annotated[bool, flag("Fetch a missing data set.", "--download")]
    suite: Annotated[
        list[str] | None,
        option(
            "SUITE",
            "Name or TOML file; `robench attacks` lists them. Given twice, the attacks of both; "
            "default: standard.",
        ),
    ] = None
    settings: Annotated[
        list[str] | None,
        option("ATTACK.NAME=VALUE", "Another parameter of an attack, as pgd-20.steps=40.", "--set"),
    ]
    n: Annotated[
        int | None,
        option("N", "Samples, always the same ones; default: 500, or all of fewer.", "--n", "-n"),
    ]
    norm: Annotated[str | None, option("NORM", "Linf, L2 or L1; default: each model's own.")]
    eps: Annotated[
        str | None,
        option(
            "EPS",
            "Radius in [0, 1] units, as 8/255, or several that rise, as 0,1/255,2/255; default: each "
            "model's own.",
        ),
    ]
    goal: Annotated[
        str,
        option(f"[{'|'.join(GOALS)}]", "Any misclassification, or --targets, count as broken."),
    ]
    targets: Annotated[
        str | None,
        option(
            "RULE",
            "Of --goal targeted: next, least-likely, random, all, or a class by name or number.",
        ),
    ]
    seed: Annotated[int, option("SEED", "Keys every draw.")]
    architecture: Annotated[
        str | None,
        option(
            "NAME",
            "Architecture of weights without a card: robench's, torchvision:NAME, timm:NAME, "
            "transformers:TYPE, package.module:callable, or program.",
            "--arch",
        ),
    ]
    architecture_arguments: Annotated[
        list[str] | None, option("NAME=VALUE", "Argument of the architecture.", "--arch-arg")
    ]
    weights: Annotated[
        list[str] | None,
        option(
            "NAME=VALUE",
            "Where in such a file the network is, as key=model_ema or strip_prefix=net.",
        ),
    ]
    input: Annotated[
        list[str] | None,
        option(
            "NAME=VALUE", "What weights without a card expect, as mean=0.5 std=0.25, or high=255."
        ),
    ]
    forward: Annotated[
        list[str] | None,
        option("NAME=VALUE", "Where such weights' logits are, as output=logits or output=0."),
    ]
    trust_pickle: Annotated[bool, flag("Execute the code in the weights file.", "--trust-pickle")]
    trust_code: Annotated[
        bool, flag("Import and call the code that cards, suites or --dataset name.", "--trust-code")
    ]
    device: Annotated[
        str,
        option(
            "DEVICE", "auto, cpu, cuda, cuda:1 or mps; several: cuda:0,cuda:1, cuda:all or cpu:2."
        ),
    ]
    precision: Annotated[
        str, option(f"[{'|'.join(PRECISIONS)}]", "Of the search; verdicts are always in float32.")
    ]
    draws: Annotated[
        int | None,
        option("K", "Of a verdict, where outputs are random; default: the card's, or 32."),
    ]
    batch_size: Annotated[int | None, option("N", "Default: measured. Changes no result.")]
    workers: Annotated[
        int | None,
        option(
            "N", "Searches side by side; default: on a CPU one for each thread. Changes no result."
        ),
    ]
    results: ResultsFolder = Path("results")
    save_adversarial: Annotated[bool, flag("Keep every adversarial input.", "--save-adversarial")]
    shard: Annotated[
        str | None,
        option("K/N", "Only the K-th of N parts of every job; `robench results merge` joins them."),
    ]
    executor: Annotated[
        str, option(f"[{'|'.join(EXECUTORS)}]", "This machine, or parts of jobs on a Ray cluster.")
    ]
    address: Annotated[
        str, option("ADDRESS", "Of the cluster: local (of this machine alone), auto or HOST:PORT.")
    ]
    shards: Annotated[
        int | None, option("N", "Parts of a job on a cluster; default: as many as keep it busy.")
    ]
    cpus_per_task: Annotated[float, option("X", "CPUs that a part takes of the cluster.")]
    gpus_per_task: Annotated[
        float | None, option("X", "GPUs that it takes, such as 0.5; default: 1 if there are any.")
    ]
    trace: Annotated[
        bool, flag("Keep margin, loss and gradient norm at each step, and plot them.", "--trace")
    ]


def is_quiet() -> bool:
    """Whether --quiet was given."""
    return logging.getLogger("robench").level >= logging.ERROR


def model_names(incomplete: str) -> list[str]:
    """What a shell completes a model to: short names, and ids once a slash is there."""
    from robench.models.zoo import list_cards  # pydantic

    cards = list_cards(problems=[])
    names = [found.id if "/" in incomplete else found.card.name for found in cards]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


SAMPLES = ("dataset", "split", "data_root", "dataset_options", "download")
"""Where the samples are."""

WEIGHTS = ("architecture", "architecture_arguments", "weights", "input", "forward", "trust_pickle")
"""What weights without a card do not say themselves."""

CLUSTER = ("executor", "address", "shards", "cpus_per_task", "gpus_per_task")
"""Where jobs run, and how they are divided."""


class _FilterOptions:
    """Field of the filter of stored records → its option."""

    dataset: Annotated[str | None, option("NAME", "Only results on this data set.")]
    norm: Annotated[str | None, option("NORM", "Only this norm: Linf, L2 or L1.")]
    eps: Annotated[
        str | None, option("EPS", "Only this eps, such as 8/255, or these: 1/255,8/255.")
    ]
    n: Annotated[int | None, option("N", "Only results on so many samples.", "--n", "-n")]
    seed: Annotated[int | None, option("SEED", "Only results of this seed.")]
    goal: Annotated[str | None, option(f"[{'|'.join(GOALS)}]", "Only results of this goal.")]
    targets: Annotated[
        str | None, option("RULE", "Only results with these targets: a rule, or a class.")
    ]


Command = Callable[..., None]

_NAME_VALUES = {
    "dataset_options": "--dataset-option",
    "settings": "--set",
    "architecture_arguments": "--arch-arg",
    "weights": "--weights",
    "input": "--input",
    "forward": "--forward",
}
"""Fields that are given as NAME=VALUE, and their options."""

_TEXTS = {
    "--dataset-option": frozenset(
        {"masks", "name", "samples", "config", "image", "label", "labels"}
        | {"class_names", "corrupted"}
    ),
    "--weights": frozenset({"key", "strip_prefix"}),
}
"""Option → names whose values are texts, whatever they look like."""

_WORDS = {
    **dict.fromkeys(("true", "True", "yes", "on"), True),
    **dict.fromkeys(("false", "False", "no", "off"), False),
    "None": None,
}

_BARE_DECIMAL = re.compile(r"[+-]?(\.\d+|\d+\.)([eE][+-]?\d+)?", re.ASCII)
"""Numbers that JSON does not take."""


def request_options(
    *, only: Collection[str] | None = None, without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """The command's parameter ``request`` becomes the options of its fields, all or ``only`` some,
    ``without`` others."""
    defaults = {
        item.name: None if item.default is MISSING else item.default for item in fields(Request)
    }
    declared = [
        _parameter(name, option, vars(RequestOptions).get(name, defaults[name]))
        for name, option in get_type_hints(RequestOptions, include_extras=True).items()
        if (only is None or name in only) and name not in without
    ]
    return _options("request", _request, declared)


def _request(**given: Any) -> Request:
    for name, option in _NAME_VALUES.items():
        if name in given:
            given[name] = parse_name_values(given[name] or [], option)
    match given.pop("suite", None):
        case [one]:
            given["suite"] = one
        case [*several] if several:
            given["suite"] = tuple(several)
    return Request(**given)


def filter_options(command: Command) -> Command:
    """The command's parameter ``wanted`` becomes the options of a filter of stored records."""
    hints = get_type_hints(_FilterOptions, include_extras=True)
    declared = [_parameter(name, option, None) for name, option in hints.items()]
    return _options("wanted", RecordFilter, declared)(command)


def _parameter(name: str, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=option, default=default
    )


def _options(
    parameter: str, make: Callable[..., Any], declared: Sequence[inspect.Parameter]
) -> Callable[[Command], Command]:
    """Options in place of a parameter that is made from them."""

    def decorate(command: Command) -> Command:
        # Commands import RecordFilter for the type checker only.
        hints = get_type_hints(command, localns={"RecordFilter": Any}, include_extras=True)
        listed: list[inspect.Parameter] = []
        for own in inspect.signature(command).parameters.values():
            own_option = _parameter(own.name, hints[own.name], own.default)
            listed += declared if own.name == parameter else [own_option]

        @functools.wraps(command)
        def flat(**given: Any) -> None:
            value = make(**{option.name: given.pop(option.name) for option in declared})
            command(**{parameter: value}, **given)

        # What Typer reads of a command.
        flat.__annotations__ = {option.name: option.annotation for option in listed}
        flat.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
        return flat

    return decorate


def parse_name_values(texts: Sequence[str], option: str) -> dict[str, Any]:
    """``["lr=0.1", "milestones=0.5,0.75"]`` → ``{"lr": 0.1, "milestones": [0.5, 0.75]}``.

    A value is a literal of JSON (or True, False, None; yes, no, on, off; .5 or 5.), several of them
    with commas between, or else text. In quotes it is text whatever it says, and so is the value of
    an option that is a name or a path.

    Raises:
        UsageError: no ``=``, no name, or a name twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not (equals and name):
            raise UsageError(f"{text!r} is not a setting", where=option, hint="Write NAME=VALUE")
        if name in found:
            raise UsageError(f"{name!r} is given twice", where=option)
        found[name] = value if name in _TEXTS.get(option, ()) else _value(value)
    return found


def _value(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text, parse_constant=_no_number)
    if "," in text:
        return [_value(part) for part in text.split(",")]
    if _BARE_DECIMAL.fullmatch(text.strip()):
        return float(text)
    return _WORDS.get(text, text)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def check_one_radius(request: Request) -> None:
    """Refuse a list of radii where the command is about one.

    Raises:
        UsageError: ``--eps`` holds several.
    """
    if request.eps is not None and len(radii := parse_radii(request.eps)) > 1:
        raise UsageError(f"--eps holds {len(radii)} radii, and one is needed", hint="Choose one")


def record_name(model: str) -> str:
    """What records call a model: a card's path → its id; anything else as it is.

    Raises:
        CardError: the card breaks the schema.
    """
    from robench.models.cards import read_card  # pydantic
    from robench.models.zoo_folders import CARD_NAME

    path = expanded(model)
    if os.path.isdir(path):
        path = path / CARD_NAME
    return read_card(path).id if path.name == CARD_NAME and os.path.isfile(path) else model
