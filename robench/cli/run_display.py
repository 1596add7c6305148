"""What people see of a run while it runs.

Loads Rich and pydantic, so the commands import it when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from robench.cli.options import is_quiet
from robench.cli.output import robust_acc, rows_of, targeted_success
from robench.formatting import number
from robench.records import EvaluationRecord, Outcome

if TYPE_CHECKING:
    from robench.results import StoredRecord


class RunDisplay:
    """Shows a run on stderr; a context manager and a listener of the runner.

    On a terminal there are two bars, one for the whole run and one for the attack at work.
    Elsewhere (a log, a pipe) there is a line for each of the ``jobs``, as many as records.
    """

    def __init__(self, jobs: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, markup=False)
        self._console.quiet |= is_quiet()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            _TimeLeftColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._whole = self._bars.add_task(f"{jobs} attacks", total=jobs, unit=None)
        self._current: TaskID | None = None
        self._steps = self._started = 0

    def __enter__(self) -> RunDisplay:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        """A job begins, or its record was found in the store."""
        if cached:
            return
        self._started, self._steps = self._started + 1, self._steps + steps
        if self._current is None:
            self._current = self._bars.add_task("", unit="steps")
        # Several on a cluster have one bar.
        told = f"{model} · {attack}" if self._started == 1 else f"{self._started} at work"
        self._bars.update(self._current, description=told, total=self._steps or None)

    def advanced(self, steps: int) -> None:
        """Search steps of the current job were completed or became unnecessary."""
        if self._current is not None:
            self._bars.advance(self._current, steps)

    def job_finished(self, stored: StoredRecord) -> None:
        """A record is in the store."""
        cached = self._current is None
        if self._current is not None and self._started > 1:
            self._started -= 1
            self._bars.update(self._current, description=f"{self._started} at work")
        elif self._current is not None:
            self._bars.remove_task(self._current)
            self._current, self._started, self._steps = None, 0, 0
        self._bars.advance(self._whole)
        if not self._console.is_terminal:
            self._console.print(_job_line(stored.record, cached), soft_wrap=True)

    def model_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        """All jobs of a model are done."""
        # Loads pandas, which commands that only list names do without.
        from robench.reporting.model_results import collect

        if any(stored.record.part is not None for stored in records):
            return  # some samples are no number for the model
        if records and records[0].record.threat_model.targets is not None:
            self._targeted_finished(model, records)
            return
        for result in collect(records):
            robust, clean = result.robust_acc, result.clean_acc
            attacks = " · ".join(
                f"{name} {number(result.attack_acc(name).estimate)}" for name in result.attacks
            )
            self._console.print(
                f"{model}: robust {number(robust.estimate)} % "
                f"({number(robust.low)} – {number(robust.high)}) at {result.threat_model}, "
                f"clean {number(clean.estimate)} % · {attacks}",
                soft_wrap=True,
            )

    def _targeted_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        from robench.reporting.model_results import collect
        from robench.reporting.targeted import targeted_table
        from robench.results import RecordFilter

        rows = rows_of(targeted_table(collect(records, RecordFilter(goal="targeted"))))
        whole, *each = rows
        attacks = " · ".join(f"{row['attack']} {number(row['targeted_success'])}" for row in each)
        self._console.print(
            f"{model}: {number(whole['targeted_success'])} % of {whole['attacked']} reach their "
            f"target ({number(whole['targeted_success_low'])} – "
            f"{number(whole['targeted_success_high'])}) at {records[0].record.threat_model} · "
            f"{attacks}",
            soft_wrap=True,
        )


class _RateColumn(ProgressColumn):
    """Units a second, for tasks that count something worth a rate."""

    def render(self, task: Task) -> Text:
        """The speed so far, empty until it is known."""
        unit = task.fields.get("unit")
        speed = task.finished_speed or task.speed
        return Text("" if unit is None or speed is None else f"{speed:,.0f} {unit}/s")


class _TimeLeftColumn(TimeRemainingColumn):
    """Time left, of tasks whose steps are alike; whole attacks are not."""

    def render(self, task: Task) -> Text:
        """Empty for the run as a whole."""
        return Text("") if task.fields.get("unit") is None else super().render(task)


def _job_line(record: EvaluationRecord, cached: bool) -> str:
    errored = record.count(Outcome.ERRORED)
    said = f"{number(robust_acc(record))} % survive"
    if record.threat_model.targets is not None:
        said = f"{number(targeted_success(record))} % reach their target under"
    parts = [f"{record.model.name} · {record.attack.name}: {said} {record.threat_model}"]
    parts += [f"{errored} errored"] if errored else []
    parts += [f"part {p.index} of {p.count}"] if (p := record.part) is not None else []
    parts.append("stored before" if cached else f"{number(record.cost.seconds)} s")
    return ", ".join(parts)
