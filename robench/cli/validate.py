"""``robench validate``: is a robustness number worth what it says?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import (
    CLUSTER,
    JsonFlag,
    PlotsFlag,
    model_names,
    option,
    request_options,
)
from robench.request import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robench.records import Trial, Validation

_SUITE = "aa-standard"

_MOVED = 1
"""The exit code where a number does not stand."""

_LEFT_OUT = 2


@request_options(without=("suite", "settings", "goal", "targets", "shard", *CLUSTER))
def validate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="As for `robench run`; none: all of the zoo.",
            autocompletion=model_names,
        ),
    ] = None,
    *,
    suite: Annotated[
        str, option("SUITE", "The suite whose number is judged; made where records lack.")
    ] = _SUITE,
    request: Request,
    plots: PlotsFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Find what masks a model's gradients, break it, and say what its number is worth.

    The suite's records are read or made; tests on a few samples and the records' own flags say
    whether gradients are masked; what this asks for is tried, and its finds become a record like any
    other. Ends with a verdict: stands, lowered, or unreliable.

    Exit code 0: every number stands, 1: one does not, 2: an error, or a model was left out.
    """
    # Everything below loads torch, which --help does without.
    from robench.api import prepare
    from robench.cli.printing import print_result
    from robench.cli.run_display import RunDisplay
    from robench.errors import RobenchError
    from robench.models.zoo import zoo_cards
    from robench.reporting.publish import publish
    from robench.request_loading import choose_models
    from robench.results import Store
    from robench.validity.validation import validate as validate_prepared

    request = replace(request, models=tuple(models or ()), suite=suite)
    chosen, data = choose_models(request)
    found: list[Validation] = []
    left_out: list[str] = []
    for model in chosen:
        try:
            prepared = prepare(replace(request, models=(model,), dataset=data))
            with RunDisplay(prepared.jobs + len(prepared.planned)) as display:
                found += validate_prepared(prepared, display)
        except RobenchError as error:
            if len(chosen) == 1:
                raise
            name = getattr(model, "id", model)
            left_out.append(f"{name}: {error}")
            typer.echo(f"robench: warning: left out {name}: {error}", err=True)
    store = Store(request.folder)
    files = publish(store, plots=plots, cards=zoo_cards()).files if found else []
    content = {
        "validations": [validation.model_dump(mode="json") for validation in found],
        "left_out": left_out,
        "files": [str(path) for path in files],
    }
    print_result(content, validations_text(found), as_json=as_json)
    if left_out:
        raise typer.Exit(_LEFT_OUT)
    if any(validation.verdict != "stands" for validation in found):
        raise typer.Exit(_MOVED)


def validations_text(found: Sequence[Validation]) -> str:
    """For a terminal: of each model the verdict, what was seen, and what was tried."""
    return "\n\n".join(map(_text, found))


def _text(validation: Validation) -> str:
    from robench.formatting import format_table, number

    head = (
        f"{validation.model.id} under {validation.threat_model}, {validation.dataset.name}, "
        f"n = {validation.dataset.n}, seed {validation.seed}, suite {validation.suite}"
    )
    verdict = (
        f"{validation.verdict.upper()}: {number(validation.robust_acc)} % robust, "
        f"{number(validation.best_known_acc)} % after the countermeasures"
    )
    parts = [head, "\n".join([verdict, *(f"  {reason}" for reason in validation.reasons)])]
    tests = [
        (item.test, item.outcome, ", ".join(item.asks_for), item.evidence)
        for item in validation.diagnoses
    ]
    parts.append(format_table(("test", "outcome", "asks for", "evidence"), tests))
    trials = [_trial_row(trial) for trial in validation.trials]
    if trials:
        header = ("countermeasure", "asked by", "finds", "lowered by", "")
        parts.append(format_table(header, trials))
    return "\n\n".join(parts)


def _trial_row(trial: Trial) -> tuple[str, str, str, str, str]:
    from robench.formatting import number

    said = trial.message or ""
    return (
        trial.countermeasure,
        ", ".join(trial.asked_by) or "always",
        str(trial.finds) if trial.tried else "–",
        number(trial.lowered_by) if trial.tried else "–",
        said if trial.tried else f"not tried: {said}",
    )
