"""``robench check``: the gate for new checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robench.cli.options import (
    CLUSTER,
    SAMPLES,
    JsonFlag,
    check_one_radius,
    flag,
    model_names,
    option,
    record_name,
    request_options,
)
from robench.request import Request

if TYPE_CHECKING:
    from robench.results import RecordFilter

_FILTERS = ("dataset", "norm", "eps", "n", "seed", "goal", "targets")
"""Fields of the request that also choose among stored records."""


@request_options(
    only=(
        *SAMPLES,
        *_FILTERS,
        *("suite", "settings", "draws", "trust_pickle", "trust_code", "device", "results"),
        *CLUSTER,
    )
)
def check(
    candidate: Annotated[
        str,
        typer.Argument(
            metavar="CANDIDATE", help="Name, id, or start of a sha256.", autocompletion=model_names
        ),
    ],
    against: Annotated[
        str,
        typer.Option(
            metavar="BASELINE", help="The model to be held against.", autocompletion=model_names
        ),
    ],
    margin: Annotated[
        float | None, option("POINTS", "Tolerable loss of robust accuracy; default: 1.0.")
    ] = None,
    policy: Annotated[Path | None, option("FILE", "TOML file with all margins and levels.")] = None,
    baseline_from: Annotated[
        Path | None,
        option("PATH", "Another results folder, or a leaderboard CSV, that has the baseline."),
    ] = None,
    fill: Annotated[
        bool, flag("First run the attacks of --suite that are missing.", "--fill")
    ] = False,
    *,
    request: Request,
    json_file: Annotated[Path | None, option("FILE", "Also write JSON.")] = None,
    junit: Annotated[Path | None, option("FILE", "Also write JUnit XML.")] = None,
    sarif: Annotated[Path | None, option("FILE", "Also write SARIF, for code scanning.")] = None,
    markdown: Annotated[Path | None, option("FILE", "Also write the summary.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say whether a candidate is worse than a baseline.

    Exit code 0: not worse; 1: worse; 2: could not tell, or an error. Stored records are used;
    a model that has none is evaluated first, as `robench run` would.
    """
    from robench import regression_check as gate
    from robench.files import atomic_write
    from robench.results import RecordFilter

    rules = gate.Policy() if policy is None else gate.Policy.load(policy)
    if margin is not None:
        rules = rules.with_margin(margin)
    check_one_radius(request)
    request = _with_goal(request)
    models = (candidate,) if baseline_from is not None else (candidate, against)
    wanted = RecordFilter(**{name: getattr(request, name) for name in _FILTERS})
    _evaluate_missing(replace(request, models=models), wanted, fill=fill)
    names = record_name(candidate), record_name(against)
    pair = gate.stored_pair(*names, request.folder, wanted, baseline_from=baseline_from)
    outcome = gate.check(*pair, rules)
    outputs: tuple[tuple[Path | None, Callable[[Any], str]], ...] = (
        (json_file, gate.check_json),
        (junit, gate.check_junit),
        (sarif, partial(gate.check_sarif, about=request.folder / "leaderboard.csv")),
        (markdown, gate.check_markdown),
    )
    for path, render in outputs:
        if path is not None:
            atomic_write(path, render(outcome).encode())
    typer.echo((gate.check_json(outcome) if as_json else gate.check_markdown(outcome)).rstrip())
    raise typer.Exit(outcome.exit_code)


def _with_goal(request: Request) -> Request:
    """The request with the goal that a suite of corruptions has."""
    from robench.attacks.suites import has_corruptions, load_suite

    if not isinstance(request.suite, str | Path):
        return request  # attacks of several suites
    # Nothing is built of it here.
    corrupted = has_corruptions(load_suite(request.suite, trust_code=True))
    return replace(request, goal="corrupted") if corrupted else request


def _evaluate_missing(request: Request, wanted: RecordFilter, *, fill: bool) -> None:
    """Evaluate the models that have no record, or, to ``fill``, whatever attacks are missing."""
    from robench.errors import UnknownNameError
    from robench.reporting.model_results import collect, results_of
    from robench.results import Store

    known = collect(Store(request.folder).records(), wanted)
    missing: list[Any] = []
    sizes = set()
    for model in request.models:
        try:
            sizes |= {result.n for result in results_of(known, record_name(str(model)))}
        except UnknownNameError:
            missing.append(model)
    if not (fill or missing):
        return
    if not fill:
        request = replace(request, models=tuple(missing))
    for model in missing:
        _refuse_unknown(str(model))
    if request.n is None and len(sizes) == 1:
        # The samples that the other model was evaluated on.
        request = replace(request, n=sizes.pop())
    # Loads torch, which a check of stored records does without.
    from robench.api import prepare
    from robench.cli.run_display import RunDisplay

    prepared = prepare(request)
    with RunDisplay(prepared.jobs) as display:
        prepared.run(display)


def _refuse_unknown(model: str) -> None:
    """Refuse a name that is none of the zoo's before torch is loaded, which takes seconds."""
    from robench.errors import UnknownNameError, UsageError
    from robench.models.zoo import find_card

    if ":" in model or os.path.isfile(model):
        return
    try:
        find_card(model)
    except UnknownNameError:
        raise
    except UsageError:
        return  # which of several is the data set's to say
