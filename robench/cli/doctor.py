"""``robench doctor``: what is wrong or odd with a model, before hours are spent."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from robench.cli.findings import findings_text
from robench.cli.options import DeviceOption, JsonFlag
from robench.cli.output import print_json
from robench.cli.run_options import (
    ArchArgOption,
    ArchOption,
    DataFolderOption,
    DataOption,
    DatasetOption,
    DownloadFlag,
    InputOption,
    SplitOption,
    TrustCodeFlag,
    TrustPickleFlag,
)
from robench.cli.settings import parse_settings
from robench.errors import UsageError

__all__ = ["doctor"]

_DEFAULT_N = 200

_FOUND = 1
"""The exit code where something is to be mended."""


def doctor(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Id or short name in the zoo, card, weights file (with --arch), hf:… or "
            "robustbench:… address.",
        ),
    ],
    dataset: DatasetOption = None,
    n: Annotated[
        int | None,
        typer.Option("--n", metavar="N", min=1, help="Samples; default: 200, or all of fewer."),
    ] = None,
    split: SplitOption = "test",
    data: DataFolderOption = None,
    data_option: DataOption = None,
    download: DownloadFlag = False,
    device: DeviceOption = "auto",
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_option: InputOption = None,
    trust_pickle: TrustPickleFlag = False,
    trust_code: TrustCodeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Say what is wrong or odd with a model, with evidence and a mend, in seconds.

    Exit code 0: nothing but notes, 1: something to mend, 2: an error.
    """
    arguments = parse_settings(arch_arg or [], "--arch-arg")
    expected = parse_settings(input_option or [], "--input")
    if arch is None and (arguments or expected):
        raise UsageError(
            "--arch-arg and --input are for weights without a card",
            hint="Name their architecture with --arch",
        )
    # Everything below loads torch, which --help does without.
    from robench.cli.evaluating import Samples, load_requested
    from robench.cli.requests import Request, chosen_models
    from robench.devices import resolve_device
    from robench.doctor import examine
    from robench.records import ArchitectureSpec

    request = Request(
        models=[model],
        dataset=dataset,
        suite="quick",
        results=Path("results"),
        n=n,
        # No attack is made: it only completes the card of a file that has none.
        eps="8/255",
        split=split,
        data=data,
        data_options=parse_settings(data_option or [], "--data-option"),
        download=download,
        device=device,
        architecture=None if arch is None else ArchitectureSpec(name=arch, arguments=arguments),
        input=expected,
        trust_pickle=trust_pickle,
        trust_code=trust_code,
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
