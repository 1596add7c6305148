"""``robench run``: evaluate models, keep records, show the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.option_groups import expand_groups
from robench.cli.options import DeviceOption, JsonFlag, PlotsFlag, ResultsFolder
from robench.cli.output import print_json
from robench.cli.run_options import (
    AttackOptions,
    BatchSizeOption,
    Precision,
    PrecisionOption,
    SampleOptions,
    TrustOptions,
    WeightsOptions,
    WorkersOption,
)

__all__ = ["run"]


@expand_groups
def run(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Ids or short names of the zoo, cards, weights files (with --arch), hf:… or "
            "robustbench:… addresses; none: all of the zoo for the data set.",
        ),
    ] = None,
    *,
    samples: SampleOptions,
    attacks: AttackOptions,
    weights: WeightsOptions,
    trust: TrustOptions,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    batch_size: BatchSizeOption = None,
    workers: WorkersOption = None,
    results: ResultsFolder = Path("results"),
    save_adversarial: Annotated[
        bool,
        typer.Option(
            "--save-adversarial", help="Keep every adversarial input.", show_default=False
        ),
    ] = False,
    plots: PlotsFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Attack models, keep a record of each attack, and show the leaderboard.

    What the results folder already holds is read, not computed again, so the same command goes
    on where an interrupted one stopped.
    """
    # Everything below loads torch, which --help does without.
    from robench.cli.evaluating import evaluate, prepare
    from robench.cli.publishing import board_rows, board_text, publish
    from robench.cli.requests import Request
    from robench.cli.run_display import RunDisplay
    from robench.reporting.leaderboard import build_leaderboard
    from robench.results import Store

    request = Request(
        models=models or (),
        results=results,
        device=device,
        precision=precision.value,
        batch_size=batch_size,
        workers=workers,
        save_adversarial=save_adversarial,
        **samples.request(),
        **attacks.request(),
        **weights.request(),
        **trust.request(),
    )
    evaluation = prepare(request)
    with RunDisplay(evaluation.jobs) as display:
        records = evaluate(evaluation, display)
    store = Store(results)
    files = publish(store, list(store.records()), plots=plots)
    frame = build_leaderboard(records)
    if as_json:
        print_json({"leaderboard": board_rows(frame), "files": [str(path) for path in files]})
    else:
        typer.echo(board_text(frame))
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        typer.echo(f"\nWritten: {files[0]}{more}", err=True)
