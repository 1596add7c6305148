"""What people and machines see of a command: tables, numbers, JSON, findings.

Loads pydantic, so the commands import it when they run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from robench.formatting import format_table, is_undefined, number, plain
from robench.records import EvaluationRecord, JudgedInputs, Outcome

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from robench.doctor import Finding

_HIDDEN = ("worst_class_robust_acc", "robust_acc", "best_known_acc", "verified_acc", "clean_acc")
"""Accuracies that are no attack's, or are shown elsewhere."""


def print_result(content: Any, text: str, *, as_json: bool) -> None:
    """Print what a command has to say on stdout: ``content`` as JSON, whose undefined numbers are
    null, or else ``text``."""
    if as_json:
        text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    typer.echo(text)


def findings_text(examined: str, findings: Sequence[Finding]) -> str:
    """A line that says how many, then each with its evidence and mend."""
    count = f"{len(findings)} found" if findings else "nothing found"
    parts = [
        f"{finding.severity}: {finding.name}\n  {finding.evidence}\n  mend: {finding.mend}"
        for finding in findings
    ]
    return "\n\n".join([f"{examined}: {count}", *parts])


def robust_acc(record: EvaluationRecord) -> float:
    """Percent of the samples that survived the attack; NaN where it was after targets."""
    if record.n == 0 or record.threat_model.targets is not None:
        return math.nan
    return 100 * record.count(Outcome.SURVIVED) / record.n


def targeted_success(record: EvaluationRecord) -> float:
    """Percent of the attacked samples that were brought to their target; NaN where there is none."""
    broken = record.count(Outcome.BROKEN)
    attacked = broken + record.count(Outcome.SURVIVED)
    if attacked == 0 or record.threat_model.targets is None:
        return math.nan
    return 100 * broken / attacked


def record_line(record: EvaluationRecord) -> dict[str, Any]:
    """What a list of records says about one."""
    return {
        "key": record.key,
        "model": record.model.id,
        "dataset": record.dataset.name,
        "threat_model": str(record.threat_model),
        "attack": record.attack.name,
        "n": record.n,
        **({} if record.part is None else {"part": [record.part.index, record.part.count]}),
        "seed": record.seed,
        "robust_acc": robust_acc(record),
        "targeted_success": targeted_success(record),
        "counts": {kind.value: record.count(kind) for kind in _outcomes(record)},
        "flags": [flag.name for flag in record.flags],
        "created": record.created,
    }


def _outcomes(record: EvaluationRecord) -> list[Outcome]:
    """Those that the record counts, in one order, wherever it comes from."""
    return [kind for kind in Outcome if kind in record.counts]


def record_text(record: EvaluationRecord) -> str:
    """All about a record, for a terminal."""
    environment, cost = record.environment, record.cost
    facts = [
        ("key", record.key),
        ("model", f"{record.model.id} ({record.model.architecture})"),
        ("weights", record.model.weights_sha256),
        ("data", f"{record.dataset.name} {record.dataset.split}, n = {record.n}"),
        *([] if (p := record.part) is None else [("part", f"{p.index} of {p.count}")]),
        ("fingerprint", record.dataset.fingerprint),
        ("threat model", str(record.threat_model)),
        ("attack", f"{record.attack.name} ({record.attack.attack})"),
        ("seed", str(record.seed)),
        ("outcomes", ", ".join(f"{record.count(k)} {k.value}" for k in _outcomes(record))),
        ("targeted_success", f"{number(targeted_success(record), 2)} %")
        if record.threat_model.targets is not None
        else ("robust_acc", f"{number(robust_acc(record), 2)} %"),
        ("passes", f"{cost.forwards} forwards, {cost.backwards} backwards"),
        ("seconds", number(cost.seconds, 1)),
        ("device", f"{environment.device_name} ({environment.device}), {environment.precision}"),
        ("created", record.created),
    ]
    if record.judged is not None:
        facts += _judged_facts(record.judged)
    if record.audit is not None:
        audit, then = record.audit, ", so all were attacked" if record.audit.escalated else ""
        then += f" up to {audit.escalated_to}" if audit.escalated_to else ""
        found = f"{audit.audited} of {audit.survivors} survivors, {audit.hits} broken{then}"
        if audit.missed_share_upper:
            missed = f"{number(100 * audit.missed_share_upper)} %"
            rest = " by the stages after it" if audit.escalated else ""
            found += f"; at most {missed} of the survivors would have been{rest} (95 %)"
        facts.append(("audit", found))
    facts += [(f"flag ({flag.severity})", f"{flag.name}: {flag.evidence}") for flag in record.flags]
    width = max(len(name) for name, _ in facts)
    parts = ["\n".join(f"{name:<{width}}  {value}" for name, value in facts)]
    if record.stages:
        rows = []
        for s in record.stages:
            remark = s.skipped or (f"in {s.search}" if s.search else "")
            rows.append((s.name, str(s.attempted), str(s.broken), str(s.errored), remark))
        parts.append(format_table(("stage", "attempted", "broken", "errored", ""), rows))
    if record.metrics:
        metrics = [
            (name, *(number(v, 4) for v in (m.mean, m.mean_broken, m.mean_survived)), str(m.n))
            for name, m in record.metrics.items()
        ]
        parts.append(format_table(("metric", "mean", "broken", "survived", "n"), metrics))
    return "\n\n".join(parts)


def _judged_facts(judged: JudgedInputs) -> list[tuple[str, str]]:
    """What became of inputs that were made elsewhere, a line a reason."""
    by = {"outside the ball": judged.outside_ball_by, "outside the box": judged.outside_box_by}
    facts = [
        ("inputs", f"{judged.inputs} of {judged.source}, sha256 {judged.sha256}"),
        ("read as", judged.read_as),
        ("finds", f"{judged.finds} of {judged.inputs} inputs"),
    ]
    for reason, count in judged.not_counted.items():
        extent = by.get(reason)
        far = "" if extent is None else f", by {extent[0]:.3g} to {extent[1]:.3g}"
        facts.append(("not counted", f"{count} {reason}{far}"))
    facts.append(
        ("in 8 bits", f"{judged.finds_in_8_bits} of {judged.finds} finds survive rounding")
    )
    return facts


def show_board(
    frame: pd.DataFrame,
    files: list[Path],
    targeted: pd.DataFrame | None = None,
    corrupted: pd.DataFrame | None = None,
    *,
    as_json: bool,
    radii: bool = False,
) -> None:
    """Print a leaderboard, of several ``radii`` in one table, the tables of what was attacked with
    targets and of what was corrupted, and which files were written; as JSON with all of their columns."""
    from robench.reporting.leaderboard import as_written  # pandas

    content: dict[str, Any] = {"leaderboard": rows_of(as_written(frame))}
    parts = [board_text(frame, radii=radii)]
    if targeted is not None and len(targeted):
        content["targeted"] = rows_of(targeted)
        parts = [*(parts if len(frame) else []), targeted_text(targeted)]
    if corrupted is not None and len(corrupted):
        content["corruptions"] = rows_of(corrupted)
        parts = [*(parts if len(content) > 2 or len(frame) else []), corruptions_text(corrupted)]
    content["files"] = [str(path) for path in files]
    print_result(content, "\n\n".join(parts), as_json=as_json)
    if files and not as_json:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        typer.echo(f"\nWritten: {files[0]}{more}", err=True)


def board_text(frame: pd.DataFrame, *, radii: bool = False) -> str:
    """The leaderboard for a terminal: a table for each group of comparable rows, or, of several
    ``radii``, for each of groups that differ by theirs alone."""
    if frame.empty:
        return "No results."
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(frame):
        threat = row["norm"] if radii else f"{row['norm']} eps {row['eps']}"
        title = (
            f"{row['dataset']} {threat}, n = {number(row['n'])}, "
            f"seed {number(row['seed'])} (data {str(row['data_sha256'])[:8]})"
        )
        groups.setdefault(title, []).append(row)
    tables = ((title, _group_table(rows, radii)) for title, rows in groups.items())
    return "\n\n".join(f"{title}\n{table}" for title, table in tables)


def targeted_text(frame: pd.DataFrame) -> str:
    """How often targets were reached, for a terminal: a table for each group of comparable rows."""
    header = ["model", "attack", "reached", "attacked", "success %", "95 % interval", "pairs %"]
    header += ["targeted robust %", "clean %", "validity"]

    def cells(row: dict[str, Any]) -> list[str]:
        return [
            *(str(row[name]) for name in ("model", "attack", "reached", "attacked")),
            number(row["targeted_success"]),
            f"{number(row['targeted_success_low'])} – {number(row['targeted_success_high'])}",
            *(number(row[n]) for n in ("pair_success", "targeted_robust_acc", "clean_acc")),
            str(row["validity"]),
        ]

    return _by_group(frame, header, cells)


def corruptions_text(frame: pd.DataFrame) -> str:
    """Accuracy on corrupted samples, for a terminal: a table for each group of comparable rows."""
    severities = [name for name in frame.columns if name.startswith("severity_")]
    mce = ["mce"] if "mce" in frame else []
    header = ["model", "corruptions_acc", "95 % interval", *(["mCE"] if mce else [])]
    header += ["clean_acc", *(name.removesuffix("_acc") for name in severities), "validity"]

    def cells(row: dict[str, Any]) -> list[str]:
        return [
            str(row["model"]),
            number(row["corruptions_acc"]),
            f"{number(row['corruptions_acc_low'])} – {number(row['corruptions_acc_high'])}",
            *(number(row[name]) for name in (*mce, "clean_acc", *severities)),
            str(row["validity"]),
        ]

    return _by_group(frame, header, cells)


def _by_group(
    frame: pd.DataFrame, header: list[str], cells: Callable[[dict[str, Any]], list[str]]
) -> str:
    tables = (
        f"{title}\n{format_table(header, [cells(row) for row in rows_of(block)])}"
        for title, block in frame.groupby("group", sort=False)
    )
    return "\n\n".join(tables)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, by column."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _group_table(rows: list[dict[str, Any]], radii: bool) -> str:
    attacks = [
        name
        for name in rows[0]
        if name.endswith("_acc")
        and name not in _HIDDEN
        and any(number(row[name]) != "–" for row in rows)
    ]
    header = ["eps"] * radii + ["rank", "model", "robust_acc", "95 % interval", "best known"]
    verified = any(number(row.get("verified_acc")) != "–" for row in rows)
    header += [*(["verified"] if verified else []), "clean_acc"]
    header += [name.removesuffix("_acc").replace("_", "-") for name in attacks]
    audited = any(number(row.get("audit_missed")) != "–" for row in rows)
    validated = any(not is_undefined(row.get("validated")) for row in rows)
    header += [*(["audit missed ≤"] if audited else []), "worst class"]
    header += [*(["validated"] if validated else []), "validity"]
    body = []
    for row in rows:
        interval = f"{number(row['robust_acc_low'])} – {number(row['robust_acc_high'])}"
        worst = number(row["worst_class_robust_acc"])
        worst += "" if is_undefined(row["worst_class"]) else f" ({row['worst_class']})"
        body.append(
            [
                *[str(row["eps"])] * radii,
                number(row["rank"]),
                str(row["model"]),
                number(row["robust_acc"]),
                interval,
                number(row["best_known_acc"]),
                *([number(row["verified_acc"])] if verified else []),
                number(row["clean_acc"]),
                *(number(row[name]) for name in attacks),
                *([number(row["audit_missed"])] if audited else []),
                worst,
                *([_text(row["validated"])] if validated else []),
                str(row["validity"]),
            ]
        )
    return format_table(header, body)


def _text(value: Any) -> str:
    return "–" if is_undefined(value) else str(value)
