"""What ``robench run --dry-run`` says: jobs, passes, time and memory. Loads torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from robench.api import Prepared
from robench.cli.printing import print_result
from robench.formatting import format_table, number

if TYPE_CHECKING:
    from robench.evaluation.plan import ModelPlan

_SHARDS = (1, 4, 16, 64)
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0


def show_plan(prepared: Prepared, *, as_json: bool) -> None:
    """Measure, and print what a request's run would take."""
    plans = prepared.plan()
    content = {
        "models": [
            {
                **asdict(plan),
                "seconds": plan.seconds(),
                "jobs": [
                    {"attack": job.attack, "passes": job.passes, "seconds": job.seconds}
                    | {"stages": [asdict(stage) for stage in job.stages]}
                    for job in plan.jobs
                ],
            }
            for plan in plans
        ],
        "seconds_by_shards": {str(count): _seconds(plans, count) for count in _SHARDS},
    }
    print_result(content, _text(plans, prepared), as_json=as_json)


def _text(plans: Sequence[ModelPlan], prepared: Prepared) -> str:
    rows = []
    for plan in plans:
        who = (plan.model, plan.threat_model)
        rows += [(*who, name, "", "", "stored before") for name in plan.stored]
        for job in plan.jobs:
            rows += [(*who, job.attack, "", _count(job.passes), duration(job.seconds))]
            rows += [
                ("", "", f"  {s.name}", _count(s.samples), _count(s.passes), duration(s.seconds))
                for s in job.stages
                if len(job.stages) > 1
            ]
        rows.append((*who, "preparing", str(plan.n), "", duration(plan.preparing_seconds)))
    table = format_table(("model", "under", "attack", "samples", "passes", "time"), rows)
    jobs = sum(len(plan.jobs) for plan in plans)
    workers = max((plan.workers for plan in plans), default=1)
    seconds = _seconds(plans, 1)
    told = "about " + duration(seconds)
    if math.isnan(seconds):
        told = "time unknown: attacks of other libraries cannot be timed beforehand"
    lines = [f"{jobs} jobs to run on {prepared.device}, workers: {workers}: {told}"]
    if not math.isnan(seconds) and prepared.request.part is None:
        each = (f"{count}: {duration(_seconds(plans, count))}" for count in _SHARDS[1:])
        lines.append(f"In each of so many shards on machines like this: {', '.join(each)}")
    reference = sum(plan.reference_seconds for plan in plans)
    lines.append(f"AutoAttack as its reference runs it, to the last step: {duration(reference)}")
    held = [plan.peak_memory_mib for plan in plans if plan.peak_memory_mib is not None]
    if held:
        lines.append(f"Memory: {number(max(held), 0)} MiB")
    return "\n".join([table, "", *lines])


def _seconds(plans: Sequence[ModelPlan], shards: int) -> float:
    return sum(plan.seconds(shards) for plan in plans)


def _count(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{round(value):,}"


def duration(seconds: float) -> str:
    """``5400.0`` → ``"1.5 h"``; two digits are more than a short measurement knows."""
    if math.isnan(seconds):
        return "unknown"
    for unit, name in ((_DAY, "days"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"
