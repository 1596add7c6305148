"""What people and machines see of records and findings.

Loads pydantic, so the commands import it when they run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robench.formatting import format_table, number
from robench.records import EvaluationRecord, JudgedInputs, Outcome
from robench.results import RecordFilter

if TYPE_CHECKING:
    from robench.doctor import Finding
    from robench.results import StoredRecord


def findings_text(examined: str, findings: Sequence[Finding]) -> str:
    """A line that says how many, then each with its evidence and mend."""
    count = f"{len(findings)} found" if findings else "nothing found"
    parts = [
        f"{finding.severity}: {finding.name}\n  {finding.evidence}\n  mend: {finding.mend}"
        for finding in findings
    ]
    return "\n\n".join([f"{examined}: {count}", *parts])


def survived(record: EvaluationRecord) -> float:
    """Percent of the samples that survived the attack, or were right under each corruption."""
    return 100 * record.count(Outcome.SURVIVED) / record.n if record.n else math.nan


def robust_acc(record: EvaluationRecord) -> float:
    """Percent of the samples that survived the attack; NaN where it was after targets, or there was none."""
    return survived(record) if record.threat_model.goal == "untargeted" else math.nan


def corruptions_acc(stored: StoredRecord) -> float:
    """As the table of corruptions has it; NaN of attacks, and where a corruption is lacking."""
    from robench.reporting import corruptions  # pandas
    from robench.reporting.model_results import collect

    found = collect([stored], RecordFilter(goal="corrupted"))
    return corruptions.corruptions_acc(found[0]).estimate if found else math.nan


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
        _share(record),
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


def _share(record: EvaluationRecord) -> tuple[str, str]:
    """What came of all samples, under the name that it has."""
    match record.threat_model.goal:
        case "targeted":
            return "targeted_success", f"{number(targeted_success(record), 2)} %"
        case "corrupted":
            return "right under all", f"{number(survived(record), 2)} %"
    return "robust_acc", f"{number(robust_acc(record), 2)} %"


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
