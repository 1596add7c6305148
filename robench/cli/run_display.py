"""What a person sees of a run: bars with rate and time left, a row as each model finishes."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

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

from robench.cli.output import number
from robench.records import EvaluationRecord, Outcome
from robench.reporting.model_results import collect
from robench.results import StoredRecord

__all__ = ["RunDisplay"]


class RunDisplay:
    """Shows a run on stderr; a context manager and a listener of the runner.

    On a terminal there are two bars, one for the whole run and one for the attack at work.
    Elsewhere (a log, a pipe) there is a line for each attack.

    Args:
        jobs: number of records that the run will give.
        console: where to draw; None: stderr.
    """

    def __init__(self, jobs: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._jobs = jobs
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            _RateColumn(),
            TimeElapsedColumn(),
            _TimeLeftColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._whole: TaskID | None = None
        self._current: TaskID | None = None

    def __enter__(self) -> RunDisplay:
        self._bars.start()
        self._whole = self._bars.add_task(f"{self._jobs} attacks", total=self._jobs, unit=None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        """A job begins, or its record was found in the store."""
        if not cached:
            self._current = self._bars.add_task(
                f"{model} · {attack}", total=steps or None, unit="steps"
            )

    def advanced(self, steps: int) -> None:
        """Search steps of the current job were completed or became unnecessary."""
        if self._current is not None:
            self._bars.advance(self._current, steps)

    def job_finished(self, stored: StoredRecord) -> None:
        """A record is in the store."""
        cached = self._current is None
        if self._current is not None:
            self._bars.remove_task(self._current)
            self._current = None
        if self._whole is not None:
            self._bars.advance(self._whole)
        if not self._console.is_terminal:
            self._console.print(_job_line(stored.record, cached), soft_wrap=True)

    def model_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        """All jobs of a model are done."""
        for result in collect(records):
            robust, clean = result.robust_acc, result.clean_acc
            attacks = " · ".join(
                f"{name} {number(result.attack_acc(name).estimate)}" for name in result.attacks
            )
            self._console.print(
                f"{model}: robust {number(robust.estimate)} % "
                f"({number(robust.low)} – {number(robust.high)}), "
                f"clean {number(clean.estimate)} % · {attacks}",
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
    share = 100 * record.count(Outcome.SURVIVED) / record.n
    errored = record.count(Outcome.ERRORED)
    parts = [f"{record.model.name} · {record.attack.name}: {number(share)} % survive"]
    parts += [f"{errored} errored"] if errored else []
    parts.append("stored before" if cached else f"{number(record.cost.seconds)} s")
    return ", ".join(parts)
