"""``robench doctor``: what is wrong or odd with a model, before hours are spent."""

from dataclasses import asdict, replace
from typing import Annotated

import typer

from robench.cli.options import SAMPLES, WEIGHTS, JsonFlag, model_names, option, request_options
from robench.request import Request

_DEFAULT_N = 200

_FOUND = 1
"""The exit code where something is to be mended."""


@request_options(only=(*SAMPLES, *WEIGHTS, "trust_code", "device"))
def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Id or short name in the zoo, card, weights file (with --arch), hf:… or "
            "robustbench:… address; none: the installation itself is looked at.",
            autocompletion=model_names,
        ),
    ] = None,
    *,
    n: Annotated[
        int | None, option("N", "Samples; default: 200, or all of fewer.", "--n", "-n", min=1)
    ] = None,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Say what is wrong or odd with a model, or without one with the installation, in seconds: with
    evidence and a mend.

    Exit code 0: nothing but notes, 1: something to mend, 2: an error.
    """
    # Everything below loads torch, which --help does without.
    from robench.cli.output import findings_text
    from robench.cli.printing import print_result
    from robench.devices import resolve_device
    from robench.doctor import examine
    from robench.request_loading import load_requested

    if model is None:
        _examine_installation(as_json=as_json)
        return
    place = resolve_device(request.device)
    # No attack is made: ε only completes the card of a file that has none.
    request = replace(request, models=(model,), n=n, at_most=_DEFAULT_N, eps="8/255")
    ((loaded, samples),) = load_requested(request)
    loaded = loaded.to(place)
    found = examine(
        loaded,
        samples.batch(range(len(samples))).to(place),
        samples.labels.to(place),
        data_classes=samples.num_classes,
    )
    name = loaded.summary.id
    content = {
        "model": name,
        "dataset": samples.name,
        "split": samples.split,
        "n": len(samples),
        "findings": [asdict(finding) for finding in found],
    }
    examined = f"{name} on {len(samples)} samples of {samples.name} ({samples.split})"
    print_result(content, findings_text(examined, found), as_json=as_json)
    if any(finding.severity != "note" for finding in found):
        raise typer.Exit(_FOUND)


def _examine_installation(*, as_json: bool) -> None:
    from robench.cli.installation import examine_installation
    from robench.cli.printing import print_result
    from robench.formatting import format_table

    parts = examine_installation()
    rows = [(part.name, part.state, part.said) for part in parts]
    print_result(
        [asdict(part) for part in parts], format_table(("", "", "found"), rows), as_json=as_json
    )
    if any(part.state == "lacking" for part in parts):
        raise typer.Exit(_FOUND)
