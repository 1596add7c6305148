"""``robench run``: evaluate models, keep records, show the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robench.cli.options import DeviceOption, JsonFlag, PlotsFlag, ResultsFolder
from robench.cli.output import print_json
from robench.cli.run_options import (
    ArchArgOption,
    ArchOption,
    BatchSizeOption,
    DataFolderOption,
    DataOption,
    DatasetOption,
    DownloadFlag,
    EpsOption,
    InputOption,
    NOption,
    NormOption,
    Precision,
    PrecisionOption,
    SeedOption,
    SplitOption,
    SuiteOption,
    TrustCodeFlag,
    TrustPickleFlag,
)
from robench.cli.settings import parse_settings
from robench.errors import UsageError

__all__ = ["run"]


def run(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Ids or short names of the zoo, cards, weights files (with --arch), hf:… or "
            "robustbench:… addresses; none: all of the zoo for the data set.",
        ),
    ] = None,
    dataset: DatasetOption = None,
    suite: SuiteOption = "standard",
    n: NOption = None,
    norm: NormOption = None,
    eps: EpsOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = Precision.AUTO,
    batch_size: BatchSizeOption = None,
    results: ResultsFolder = Path("results"),
    save_adversarial: Annotated[
        bool,
        typer.Option(
            "--save-adversarial", help="Keep every adversarial input.", show_default=False
        ),
    ] = False,
    plots: PlotsFlag = True,
    split: SplitOption = "test",
    data: DataFolderOption = None,
    data_option: DataOption = None,
    download: DownloadFlag = False,
    arch: ArchOption = None,
    arch_arg: ArchArgOption = None,
    input_option: InputOption = None,
    trust_pickle: TrustPickleFlag = False,
    trust_code: TrustCodeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Attack models, keep a record of each attack, and show the leaderboard.

    What the results folder already holds is read, not computed again, so the same command goes
    on where an interrupted one stopped.
    """
    arguments = parse_settings(arch_arg or [], "--arch-arg")
    expected = parse_settings(input_option or [], "--input")
    if arch is None and (arguments or expected):
        raise UsageError(
            "--arch-arg and --input are for weights without a card",
            hint="Name their architecture with --arch",
        )
    # Everything below loads torch, which --help does without.
    from robench.cli.evaluating import evaluate, prepare
    from robench.cli.publishing import board_rows, board_text, publish
    from robench.cli.requests import Request
    from robench.cli.run_display import RunDisplay
    from robench.records import ArchitectureSpec
    from robench.reporting.leaderboard import build_leaderboard
    from robench.results import Store

    request = Request(
        models=models or (),
        dataset=dataset,
        suite=suite,
        results=results,
        n=n,
        norm=norm,
        eps=eps,
        seed=seed,
        split=split,
        data=data,
        data_options=parse_settings(data_option or [], "--data-option"),
        download=download,
        device=device,
        precision=precision.value,
        batch_size=batch_size,
        save_adversarial=save_adversarial,
        architecture=None if arch is None else ArchitectureSpec(name=arch, arguments=arguments),
        input=expected,
        trust_pickle=trust_pickle,
        trust_code=trust_code,
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
