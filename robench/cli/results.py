"""``robench results``: the stored records."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robench.cli.options import (
    DatasetFilter,
    DeviceOption,
    EpsFilter,
    JsonFlag,
    NFilter,
    NormFilter,
    ResultsFolder,
    SeedFilter,
)
from robench.cli.output import format_table, number, print_json, print_table
from robench.cli.run_options import DataFolderOption, DataOption, TrustPickleFlag

if TYPE_CHECKING:
    from robench.records import EvaluationRecord
    from robench.results import StoredRecord

__all__ = ["results_app"]

results_app = typer.Typer(
    help="The stored records: list, show, verify, prune, export.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class _Format(StrEnum):
    CSV = "csv"
    PARQUET = "parquet"
    ROBUSTBENCH = "robustbench"


@results_app.command("list")
def list_records(
    results: ResultsFolder = Path("results"),
    dataset: DatasetFilter = None,
    norm: NormFilter = None,
    eps: EpsFilter = None,
    n: NFilter = None,
    seed: SeedFilter = None,
    as_json: JsonFlag = False,
) -> None:
    """List the records, one line each. Exit code 2 if one is damaged."""
    from robench.cli.stores import existing_store, select

    scan = existing_store(results).scan()
    found = select(scan.records, dataset=dataset, norm=norm, eps=eps, n=n, seed=seed)
    if as_json:
        print_json(
            {
                "records": [_line(stored.record) for stored in found],
                "problems": [{"key": p.key, "problem": str(p.error)} for p in scan.problems],
            }
        )
    else:
        rows = [
            (
                record.key[:12],
                record.model.id,
                str(record.threat_model),
                record.dataset.name,
                record.attack.name,
                str(record.n),
                str(record.seed),
                number(_robust_acc(record)),
                record.created,
            )
            for record in (stored.record for stored in found)
        ]
        header = ("key", "model", "under", "data", "attack", "n", "seed", "robust_acc", "created")
        print_table(header, rows)
        for problem in scan.problems:
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
    from robench.cli.stores import existing_store, read_by_prefix

    record = read_by_prefix(existing_store(results), key).record
    if as_json:
        print_json(record.model_dump(mode="json"))
    else:
        typer.echo(_text(record))


@results_app.command()
def verify(
    results: ResultsFolder = Path("results"),
    device: DeviceOption = "auto",
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME", help="Folder or file that has the samples."),
    ] = None,
    data: DataFolderOption = None,
    data_option: DataOption = None,
    trust_pickle: TrustPickleFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Check every record's files; judge kept adversarial inputs again.

    Exit code 2 if a file is damaged or a verdict does not hold.
    """
    from dataclasses import asdict

    from robench.cli.settings import parse_settings
    from robench.cli.stores import existing_store
    from robench.inspection.verification import verify_store  # torch

    found = verify_store(
        existing_store(results),
        device=device,
        data=data,
        data_options=parse_settings(data_option or [], "--data-option"),
        dataset=dataset,
        trust_pickle=trust_pickle,
    )
    if as_json:
        print_json([asdict(item) for item in found])
    else:
        rows = [
            (f.key[:12], f.model, f.attack, "ok" if f.sound else "BAD", f.finding) for f in found
        ]
        print_table(("key", "model", "attack", "", "finding"), rows)
    if not all(item.sound for item in found):
        raise typer.Exit(2)


@results_app.command()
def prune(
    results: ResultsFolder = Path("results"),
    older_than: Annotated[
        float,
        typer.Option("--older-than", metavar="SECONDS", min=0, help="Leave younger files alone."),
    ] = 3600.0,
    as_json: JsonFlag = False,
) -> None:
    """Delete what interrupted runs left behind. Records are never touched."""
    from robench.cli.stores import existing_store

    deleted = existing_store(results).prune(older_than=older_than)
    if as_json:
        print_json([str(path) for path in deleted])
    else:
        for path in deleted:
            typer.echo(path)
        typer.echo(f"{len(deleted)} files deleted.", err=True)


@results_app.command()
def export(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="A file; for robustbench a folder."),
    ],
    form: Annotated[_Format, typer.Option("--format", help="What to write.")] = _Format.CSV,
    results: ResultsFolder = Path("results"),
    dataset: DatasetFilter = None,
    norm: NormFilter = None,
    eps: EpsFilter = None,
    n: NFilter = None,
    seed: SeedFilter = None,
) -> None:
    """Write all samples of all records as one table, or RobustBench's model_info files."""
    from robench.cli.stores import existing_store, select
    from robench.files import atomic_write
    from robench.reporting.export import samples_csv, samples_frame, samples_parquet

    store = existing_store(results)
    found = select(store.records(), dataset=dataset, norm=norm, eps=eps, n=n, seed=seed)
    if form is _Format.ROBUSTBENCH:
        for path in _write_model_info(found, out):
            typer.echo(path)
        return
    frame = samples_frame(found)
    atomic_write(out, samples_csv(frame) if form is _Format.CSV else samples_parquet(frame))
    typer.echo(out)


def _write_model_info(found: list[StoredRecord], folder: Path) -> list[Path]:
    import json

    from robench.attacks.suites import load_suite
    from robench.files import atomic_write
    from robench.models.zoo import list_cards
    from robench.reporting.export import model_info
    from robench.reporting.model_results import collect

    cards = {located.id: located.card for located in list_cards(problems=[])}
    standard = [spec for name in ("aa-standard", "reference") for spec in load_suite(name).attacks]
    written: list[Path] = []
    for result in collect(found):
        specs = [spec.for_norm(result.threat_model.norm) for spec in standard]
        card = cards.get(result.model.id)
        info = model_info(result, specs, card)
        name = card.name if card is not None else result.model.id.rpartition("/")[2]
        path = folder / result.dataset.name / result.threat_model.slug / f"{name}.json"
        if path in written:
            path = path.with_stem(f"{name}-n{result.n}-seed{result.group.seed}")
        atomic_write(path, (json.dumps(info, indent=2, ensure_ascii=False) + "\n").encode())
        written.append(path)
    return written


def _robust_acc(record: EvaluationRecord) -> float:
    from robench.records import Outcome

    return 100 * record.count(Outcome.SURVIVED) / record.n if record.n else float("nan")


def _line(record: EvaluationRecord) -> dict[str, Any]:
    return {
        "key": record.key,
        "model": record.model.id,
        "dataset": record.dataset.name,
        "threat_model": str(record.threat_model),
        "attack": record.attack.name,
        "n": record.n,
        "seed": record.seed,
        "robust_acc": _robust_acc(record),
        "counts": {outcome.value: count for outcome, count in record.counts.items()},
        "flags": [flag.name for flag in record.flags],
        "created": record.created,
    }


def _text(record: EvaluationRecord) -> str:
    environment, cost = record.environment, record.cost
    facts = [
        ("key", record.key),
        ("model", f"{record.model.id} ({record.model.architecture})"),
        ("weights", record.model.weights_sha256),
        ("data", f"{record.dataset.name} {record.dataset.split}, n = {record.n}"),
        ("fingerprint", record.dataset.fingerprint),
        ("threat model", str(record.threat_model)),
        ("attack", f"{record.attack.name} ({record.attack.attack})"),
        ("seed", str(record.seed)),
        ("outcomes", ", ".join(f"{record.count(kind)} {kind.value}" for kind in record.counts)),
        ("robust_acc", f"{number(_robust_acc(record), 2)} %"),
        ("passes", f"{cost.forwards} forwards, {cost.backwards} backwards"),
        ("seconds", number(cost.seconds, 1)),
        ("device", f"{environment.device_name} ({environment.device}), {environment.precision}"),
        ("created", record.created),
    ]
    if record.audit is not None:
        audit = record.audit
        facts.append(
            (
                "audit",
                f"{audit.audited} of {audit.survivors} survivors, {audit.hits} broken"
                + (", so all were attacked" if audit.escalated else ""),
            )
        )
    facts += [(f"flag ({flag.severity})", f"{flag.name}: {flag.evidence}") for flag in record.flags]
    width = max(len(name) for name, _ in facts)
    parts = ["\n".join(f"{name:<{width}}  {value}" for name, value in facts)]
    if record.stages:
        rows = [
            (
                s.name,
                str(s.attempted),
                str(s.broken),
                str(s.errored),
                s.skipped or (f"in {s.search}" if s.search else ""),
            )
            for s in record.stages
        ]
        parts.append(format_table(("stage", "attempted", "broken", "errored", ""), rows))
    if record.metrics:
        metrics = [
            (name, *(number(v, 4) for v in (m.mean, m.mean_broken, m.mean_survived)), str(m.n))
            for name, m in record.metrics.items()
        ]
        parts.append(format_table(("metric", "mean", "broken", "survived", "n"), metrics))
    return "\n\n".join(parts)
