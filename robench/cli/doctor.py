"""``robench doctor``: what is wrong or odd with a model, before hours are spent."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from robench.cli.findings import findings_text
from robench.cli.option_groups import expand_groups
from robench.cli.options import DeviceOption, JsonFlag
from robench.cli.output import print_json
from robench.cli.run_options import SampleOptions, TrustOptions, WeightsOptions

__all__ = ["doctor"]

_DEFAULT_N = 200

_FOUND = 1
"""The exit code where something is to be mended."""


@expand_groups
def doctor(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Id or short name in the zoo, card, weights file (with --arch), hf:… or "
            "robustbench:… address.",
        ),
    ],
    *,
    data: SampleOptions,
    n: Annotated[
        int | None,
        typer.Option("--n", metavar="N", min=1, help="Samples; default: 200, or all of fewer."),
    ] = None,
    weights: WeightsOptions,
    trust: TrustOptions,
    device: DeviceOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Say what is wrong or odd with a model, with evidence and a mend, in seconds.

    Exit code 0: nothing but notes, 1: something to mend, 2: an error.
    """
    # Everything below loads torch, which --help does without.
    from robench.cli.evaluating import Samples, load_requested
    from robench.cli.requests import Request, chosen_models
    from robench.devices import resolve_device
    from robench.doctor import examine

    request = Request(
        models=[model],
        suite="quick",
        results=Path("results"),
        n=n,
        # No attack is made: it only completes the card of a file that has none.
        eps="8/255",
        device=device,
        **data.request(),
        **weights.request(),
        **trust.request(),
    )
    place = resolve_device(device)
    (chosen,), dataset_name = chosen_models(request)
    loaded, samples = load_requested(request, chosen, Samples(request, dataset_name, _DEFAULT_N))
    loaded = loaded.to(place)
    rows = range(len(samples))
    found = examine(
        loaded,
        samples.batch(rows).to(place),
        samples.labels.to(place),
        data_classes=samples.num_classes,
    )
    name = loaded.summary.id
    if as_json:
        print_json(
            {
                "model": name,
                "dataset": samples.name,
                "split": samples.split,
                "n": len(samples),
                "findings": [asdict(finding) for finding in found],
            }
        )
    else:
        place_of = f"{name} on {len(samples)} samples of {samples.name} ({samples.split})"
        typer.echo(findings_text(place_of, found))
    if any(finding.severity != "note" for finding in found):
        raise typer.Exit(_FOUND)
