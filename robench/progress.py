"""Bars for whoever watches an evaluation, on a terminal or in a notebook."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robench.evaluation.runner import Listener
    from robench.results import StoredRecord

_EVERY = 0.25
"""Seconds between two pictures in a notebook"""


class ProgressBars:
    """Two bars, one for the whole run and one for the attack at work; a context manager and a
    listener of the runner.

    On a terminal they are on stderr and go at the end, in a notebook they are a cell's output and
    stay. Elsewhere (a log, a pipe) nothing is shown.
    """

    def __init__(self, jobs: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, markup=False)
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
        self._cell: Any = None
        self._drawn = 0.0

    def __enter__(self) -> ProgressBars:
        self._bars.start()
        if self._console.is_jupyter:
            # Only a notebook has it. Rich's own live display there would need ipywidgets.
            from IPython.display import display

            self._cell = display(self._bars, display_id=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()
        self._draw()

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
        self._draw()

    def advanced(self, steps: int) -> None:
        """Search steps of the current job were completed or became unnecessary."""
        if self._current is not None:
            self._bars.advance(self._current, steps)
        if time.monotonic() - self._drawn > _EVERY:
            self._draw()

    def job_finished(self, stored: StoredRecord) -> None:
        """A record is in the store."""
        if self._current is not None and self._started > 1:
            self._started -= 1
            self._bars.update(self._current, description=f"{self._started} at work")
        elif self._current is not None:
            self._bars.remove_task(self._current)
            self._current, self._started, self._steps = None, 0, 0
        self._bars.advance(self._whole)
        self._draw()

    def model_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        """All jobs of a model are done."""
        return

    def _draw(self) -> None:
        if self._cell is not None:
            self._cell.update(self._bars)
            self._drawn = time.monotonic()


def shown(
    jobs: int, listener: Listener | None, progress: bool
) -> AbstractContextManager[Listener | None]:
    """Who is told of a run of as many ``jobs``: the ``listener``, else bars if there is to be
    ``progress``, else nobody."""
    return ProgressBars(jobs) if listener is None and progress else nullcontext(listener)


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
