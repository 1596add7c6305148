"""``robench run``: evaluate models, keep records, show the leaderboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import (
    JsonFlag,
    PlotsFlag,
    flag,
    is_quiet,
    model_names,
    option,
    request_options,
)
from robench.errors import UsageError
from robench.request import Part, Request

if TYPE_CHECKING:
    from robench.records import Validation
    from robench.reporting.board import Board
    from robench.results import Store, StoredRecord


@request_options()
def run(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Ids or short names of the zoo, cards, weights files (with --arch), hf:… or "
            "robustbench:… addresses; none: all of the zoo for the data set.",
            autocompletion=model_names,
        ),
    ] = None,
    *,
    request: Request,
    validate: Annotated[
        bool, flag("Also say what each number is worth, as `robench validate` does.", "--validate")
    ] = False,
    dry_run: Annotated[
        bool, flag("Say what the run would take, from a short measurement, and stop.", "--dry-run")
    ] = False,
    log: Annotated[
        list[str] | None,
        option("TRACKER", "Also tell mlflow or tensorboard of each record; may be given twice."),
    ] = None,
    plots: PlotsFlag = True,
    as_json: JsonFlag = False,
) -> None:
    """Attack models, keep a record of each attack, and show the leaderboard.

    Of several radii each has records of its own; one table shows them all, and the clean samples
    as eps 0 if it is asked for.

    What the results folder already holds is read, not computed again, so the same command goes
    on where an interrupted one stopped.

    With --shard K/N only the K-th of N parts of the samples are attacked, and no leaderboard is
    made: `robench results merge` joins the parts.
    """
    # Everything below loads torch, which --help does without.
    from robench.api import prepare
    from robench.cli.printing import show_board
    from robench.cli.run_display import RunDisplay
    from robench.cli.validate import validations_text
    from robench.exports.trackers import log_records, trackers
    from robench.models.zoo import zoo_cards
    from robench.reporting.publish import publish
    from robench.results import Store
    from robench.validity.validation import validate as validate_prepared

    _check(request, validate=validate, log=bool(log))
    told = trackers(log or (), request.folder)
    prepared = prepare(replace(request, models=tuple(models or ())))
    if dry_run:
        from robench.cli.plan import show_plan

        show_plan(prepared, as_json=as_json)
        return
    with RunDisplay(prepared.jobs) as display:
        records = prepared.run(display)
    if request.part is not None:
        _show_parts(records, request.part, as_json=as_json)
        return
    found: list[Validation] = []
    if validate:
        with RunDisplay(prepared.jobs + len(prepared.planned)) as display:
            found = validate_prepared(prepared, display)
    store = Store(request.folder)
    files = publish(store, plots=plots, cards=zoo_cards()).files
    if found and not as_json:
        typer.echo(f"{validations_text(found)}\n")
    show_board(_board(records, store, request), files, as_json=as_json)
    for sentence in log_records(told, records):
        if not is_quiet():
            typer.echo(f"robench: note: {sentence}", err=True)


def _board(records: Sequence[StoredRecord], store: Store, request: Request) -> Board:
    """What was run as it is shown: the leaderboard, with the clean samples as eps 0 where that was asked
    for, what was reached of targets, and what was right of what was corrupted."""
    from robench.reporting.board import shown_board
    from robench.reporting.corruptions import corruption_table
    from robench.reporting.leaderboard import build_leaderboard, with_clean_points
    from robench.reporting.model_results import collect
    from robench.reporting.targeted import targeted_table
    from robench.results import RecordFilter
    from robench.results.bounds import known_bounds
    from robench.results.validations import Validations
    from robench.threat_models import parse_eps, parse_radii

    frame = build_leaderboard(
        records,
        known=store.records(),
        bounds=known_bounds(store),
        validations=Validations(store).all(),
    )
    radii = [] if request.eps is None else parse_radii(request.eps)
    if len(frame) and radii and parse_eps(radii[0])[0] == 0:
        frame = with_clean_points(frame, records)
    return shown_board(
        frame,
        targeted_table(collect(records, RecordFilter(goal="targeted"))),
        corruption_table(collect(records, RecordFilter(goal="corrupted"))),
        radii=len(radii) > 1,
    )


def _check(request: Request, *, validate: bool, log: bool) -> None:
    """Refuse what has no number to be validated, or to tell a tracker of."""
    if log and request.part is not None:
        raise UsageError(
            "a shard is no result that a tracker could be told of",
            hint="Merge the shards first; `robench run --log` without --shard then reads the records",
        )
    if not validate:
        return
    from robench.validity.validation import check_goal

    check_goal(request)
    if request.executor == "ray":
        raise UsageError(
            "validation runs on this machine, in forks, which a process that has run Ray must not have",
            hint="Leave out --validate, and run `robench validate` afterwards",
        )
    if request.part is not None:
        raise UsageError(
            "a number is validated once it is known, and a shard has none",
            hint="Merge the shards first, then `robench validate`",
        )


def _show_parts(records: Sequence[StoredRecord], part: Part, *, as_json: bool) -> None:
    """Print what a shard has come to: a line for each job."""
    from robench.cli.output import record_line
    from robench.cli.printing import print_result
    from robench.formatting import format_table

    rows = [
        (
            record.model.id,
            str(record.threat_model),
            record.attack.name,
            str(record.n),
            "all samples, stored before" if record.part is None else str(part),
        )
        for record in (stored.record for stored in records)
    ]
    text = format_table(("model", "under", "attack", "n", "holds"), rows)
    print_result([record_line(stored.record) for stored in records], text, as_json=as_json)
    if not as_json:
        typer.echo("\nJoin the parts with `robench results merge`.", err=True)
