"""``robench results``: the stored records."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robench.cli.options import JsonFlag, ResultsFolder, filter_options, option, request_options
from robench.errors import UsageError
from robench.request import Request

if TYPE_CHECKING:
    from robench.results import RecordFilter, Store, StoredRecord

results_app = typer.Typer(
    help="The stored records: list, show, verify, check, merge, prune.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


_SHORTEST_PREFIX = 4


@results_app.command("list")
@filter_options
def list_records(
    results: ResultsFolder = Path("results"),
    *,
    wanted: RecordFilter,
    as_json: JsonFlag = False,
) -> None:
    """List the records, one line each, and the jobs that only some parts are there of. Exit code 2 if
    one is damaged."""
    from robench.cli.output import corruptions_acc, record_line, robust_acc, targeted_success
    from robench.cli.printing import print_result
    from robench.formatting import format_table, number
    from robench.results import Store
    from robench.results.parts import divisions, missing_parts

    store = Store.existing(results)
    scan = store.scan()
    found = _in_order(scan.records, wanted)
    divided = [d for d in divisions([store]) if not store.has(d.whole)]
    divided = [division for division in divided if wanted.matches_part(division.record)]
    header = ["key", "model", "under", "data", "attack", "n", "seed", "robust_acc", "created"]
    targeted = any(stored.record.threat_model.targets for stored in found)
    header += ["targeted_success"] if targeted else []
    corrupted = any(stored.record.threat_model.corrupted for stored in found)
    header += ["corruptions_acc"] if corrupted else []
    shares = [corruptions_acc(stored) if corrupted else math.nan for stored in found]
    rows = [
        (
            record.key[:12],
            record.model.id,
            str(record.threat_model),
            record.dataset.name,
            record.attack.name,
            str(record.n),
            str(record.seed),
            number(robust_acc(record)),
            record.created,
            *([number(targeted_success(record))] if targeted else []),
            *([number(share)] if corrupted else []),
        )
        for record, share in zip((stored.record for stored in found), shares, strict=True)
    ]
    content = {
        "records": [
            record_line(stored.record) | {"corruptions_acc": share}
            for stored, share in zip(found, shares, strict=True)
        ],
        "problems": [{"key": p.key, "problem": str(p.error)} for p in scan.problems],
        "parts": [
            {
                "whole": division.whole,
                "job": str(division),
                "count": division.count,
                "missing": division.missing,
            }
            for division in divided
        ],
    }
    print_result(content, format_table(header, rows), as_json=as_json)
    for division in () if as_json else divided:
        state = f"{missing_parts(division)} missing" if division.missing else "ready to be merged"
        typer.echo(f"parts: {division}: {state}")
    for problem in () if as_json else scan.problems:
        typer.echo(f"robench: warning: {problem.error}", err=True)
    if scan.problems:
        raise typer.Exit(2)


@results_app.command()
def show(
    key: Annotated[str, typer.Argument(metavar="KEY", help="The first digits of a record's key.")],
    results: ResultsFolder = Path("results"),
    as_json: JsonFlag = False,
) -> None:
    """Print one record."""
    from robench.cli.output import record_text
    from robench.cli.printing import print_result
    from robench.results import Store

    record = _read_by_prefix(Store.existing(results), key).record
    print_result(record.model_dump(mode="json"), record_text(record), as_json=as_json)


@results_app.command()
@request_options(
    only=("results", "device", "dataset", "data_root", "dataset_options", "trust_pickle")
)
def verify(request: Request, as_json: JsonFlag = False) -> None:
    """Check every record's files, judge kept adversarial inputs again, and hold validations against
    their records.

    Exit code 2 if a file is damaged, a verdict does not hold, or a validation contradicts a record.
    """
    from dataclasses import asdict

    from robench.cli.printing import print_result
    from robench.formatting import format_table
    from robench.inspection.verification import verify_store  # torch
    from robench.results import Store

    found = verify_store(Store.existing(request.folder), request)
    rows = [(f.key[:12], f.model, f.attack, "ok" if f.sound else "BAD", f.finding) for f in found]
    table = format_table(("key", "model", "attack", "", "finding"), rows)
    print_result([asdict(item) for item in found], table, as_json=as_json)
    if not all(item.sound for item in found):
        raise typer.Exit(2)


@results_app.command()
def check(
    results: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with the stored records.")
    ] = Path("results"),
    as_json: JsonFlag = False,
) -> None:
    """Hold the records of each model against rules that no model can break.

    Such as: a single step must not break more than many, a search without gradients no more than
    those that follow them, a larger ball must hold no fewer finds. Of records with a trace (--trace) also
    say whether searches lost their gradients, were cut short or passed over a find. Exit code 1 if a rule
    is broken or an attack failed so, 2 if a record is damaged.
    """
    from dataclasses import asdict

    from robench.cli.printing import print_result
    from robench.formatting import format_table
    from robench.reporting.contradictions import contradictions
    from robench.reporting.traces import record_failures
    from robench.results import Store
    from robench.results.validations import Validations

    store = Store.existing(results)
    scan = store.scan()
    list(Validations(store).all())  # warns of those that are damaged or of other models
    found = contradictions(scan.records)
    failures = [(s.record, said) for s in scan.records for said in record_failures(s)]
    content = {
        "records": len(scan.records),
        "contradictions": [asdict(item) for item in found],
        "attack_failures": [
            {"key": record.key, **said.model_dump(mode="json")} for record, said in failures
        ],
        "problems": [{"key": p.key, "problem": str(p.error)} for p in scan.problems],
    }
    rows = [(item.model, item.under, item.rule, item.evidence) for item in found]
    rows += [(r.model.id, str(r.threat_model), said.test, said.evidence) for r, said in failures]
    text = (
        format_table(("model", "under", "rule", "evidence"), rows)
        if rows
        else (f"{len(scan.records)} records, no rule is broken.")
    )
    print_result(content, text, as_json=as_json)
    for problem in () if as_json else scan.problems:
        typer.echo(f"robench: warning: {problem.error}", err=True)
    if scan.problems:
        raise typer.Exit(2)
    if rows:
        raise typer.Exit(1)


@results_app.command()
def merge(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER", help="Results folders with parts; none: that of --results."
        ),
    ] = None,
    results: ResultsFolder = Path("results"),
    as_json: JsonFlag = False,
) -> None:
    """Join the parts that `robench run --shard` made into records of all samples.

    What is whole is joined, whatever else is not: of the first job that is not, the command says why,
    and its exit code is 2.
    """
    from robench.cli.output import record_line
    from robench.cli.printing import print_result
    from robench.evaluation.merging import merge_all  # torch
    from robench.results import Store

    stores = [Store.existing(folder) for folder in folders or [results]]
    joined, problems = merge_all(stores, Store(results))
    lines = [f"{s.record.key[:12]}  {s.record.model.id}  {s.record.attack.name}" for s in joined]
    content = {
        "records": [record_line(stored.record) for stored in joined],
        "problems": [str(problem) for problem in problems],
    }
    if joined or as_json:
        print_result(content, "\n".join(lines), as_json=as_json)
    if problems:
        raise problems[0]
    if not as_json:
        typer.echo(f"{len(joined)} records joined.", err=True)


@results_app.command()
def prune(
    results: ResultsFolder = Path("results"),
    older_than: Annotated[float, option("SECONDS", "Leave younger files alone.", min=0)] = 3600.0,
    as_json: JsonFlag = False,
) -> None:
    """Delete what interrupted runs left behind. Records are never touched."""
    from robench.cli.printing import print_result
    from robench.results import Store
    from robench.results.parts import part_stores

    store = Store.existing(results)
    stores = (store, *part_stores(store))
    deleted = [str(path) for home in stores for path in home.prune(older_than=older_than)]
    if deleted or as_json:
        print_result(deleted, "\n".join(deleted), as_json=as_json)
    if not as_json:
        typer.echo(f"{len(deleted)} files deleted.", err=True)


@results_app.command(
    hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
def export() -> None:
    """Refuse what was this command's: `robench export` has it."""
    raise UsageError(
        "`robench results export` is `robench export` now",
        hint="Of csv and parquet --samples writes what this wrote",
    )


def _read_by_prefix(store: Store, prefix: str) -> StoredRecord:
    """The record whose key starts with ``prefix``, of 4 digits or more."""
    if len(prefix) < _SHORTEST_PREFIX:
        raise UsageError(f"{prefix!r} is too short for a key", hint="Give 4 digits or more")
    known = store.keys()
    keys = [key for key in known if key.startswith(prefix.lower())]
    if len(keys) != 1:
        what = "no record has" if not keys else f"{len(keys)} records have"
        raise UsageError(
            f"{what} a key that starts with {prefix!r}",
            where=store.folder,
            hint="`robench results list` prints the keys",
        )
    return store.read(keys[0])


def _in_order(records: Iterable[StoredRecord], wanted: RecordFilter) -> list[StoredRecord]:
    """The records that are wanted, in order of model, threat model, attack and age."""

    def order(stored: StoredRecord) -> tuple[str, str, str, str]:
        record = stored.record
        return record.model.id, str(record.threat_model), record.attack.name, record.created

    return sorted((stored for stored in records if wanted.matches(stored.record)), key=order)
