"""``robench run``: evaluate models, keep records, show the leaderboard."""

from dataclasses import replace
from typing import Annotated

import typer

from robench.cli.options import JsonFlag, PlotsFlag, request_options
from robench.request import Request


@request_options()
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
    request: Request,
    plots: PlotsFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Attack models, keep a record of each attack, and show the leaderboard.

    What the results folder already holds is read, not computed again, so the same command goes
    on where an interrupted one stopped.
    """
    # Everything below loads torch, which --help does without.
    from robench.api import prepare
    from robench.cli.output import RunDisplay, show_board
    from robench.reporting.leaderboard import build_leaderboard
    from robench.reporting.publish import publish
    from robench.results import Store

    prepared = prepare(replace(request, models=tuple(models or ())))
    with RunDisplay(prepared.jobs) as display:
        records = prepared.run(display)
    store = Store(request.folder)
    stored = list(store.records())
    files = publish(store, stored, plots=plots)
    show_board(build_leaderboard(records, known=stored), files, as_json=as_json)
