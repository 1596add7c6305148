"""``robench attention``: a closer look at what an attack does to what a model sees."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from robench.cli.options import (
    CLUSTER,
    JsonFlag,
    model_names,
    option,
    request_options,
)
from robench.request import Request


@request_options(
    without=(
        "precision",
        "workers",
        "save_adversarial",
        "trace",
        "goal",
        "targets",
        "shard",
        *CLUSTER,
    )
)
def attention(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="As for `robench run`; one or more.", autocompletion=model_names
        ),
    ],
    attack: Annotated[str, option("NAME", "An entry of the suite.")] = "pgd-20",
    samples: Annotated[int, option("N", "Samples in the picture; 0: none.", min=0)] = 16,
    map_name: Annotated[
        str | None,
        option("NAME", "grad_cam, feature_sum or rollout; default: the card's.", "--map"),
    ] = None,
    layer: Annotated[
        str | None,
        option(
            "NAME", "Module whose output is the map; default: the card's, or the last spatial one."
        ),
    ] = None,
    target: Annotated[
        str,
        option(
            "CLASS", "The class that maps are for: true, predicted, or a class's name or number."
        ),
    ] = "true",
    out: Annotated[
        Path | None,
        option("FOLDER", "Where to; default: attention in the results folder.", "--out", "-o"),
    ] = None,
    *,
    request: Request,
    as_json: JsonFlag = False,
) -> None:
    """Look closer at models' attention under one attack: metrics, findings, classes, pictures.

    Adversarial inputs that the results folder holds (`robench run --save-adversarial`) are
    measured as they are; otherwise the attack runs again, with the same draws, and its record is
    not kept. Prints each metric over all correctly classified samples, the broken and the
    survivors, and whether the published observations about attention hold. Writes these tables,
    a CSV with a row for each sample, and overlays of some samples.
    """
    # Everything below loads torch, which --help does without.
    from robench.cli.printing import print_result
    from robench.cli.run_display import RunDisplay
    from robench.files import ensure_writable
    from robench.inspection.attention_report import reports_of, write_reports
    from robench.inspection.attention_study import Look, study_models

    folder = request.folder / "attention" if out is None else out
    ensure_writable(folder, "--out")
    look = Look(attack, map_name, layer, target, samples)
    studied = study_models(replace(request, models=tuple(models)), look, display=RunDisplay)
    reports = reports_of(studied)
    files = write_reports(reports, folder)
    groups = [report.content() for report in reports]
    content = {"groups": groups, "files": [str(path) for path in files]}
    print_result(content, "\n\n".join(report.text() for report in reports), as_json=as_json)
    if not as_json:
        typer.echo(f"\nWritten: {files[0]} and {len(files) - 1} more", err=True)
