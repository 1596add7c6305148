"""A training run's progress bar: rate, time left, losses, validation robustness."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["TrainingProgress"]


class TrainingProgress:
    """Shows a run on stderr; a context manager.

    Args:
        title: what is being trained.
        console: where to draw; None: stderr.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = title
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._steps = 0

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def start(self, epochs: int, steps: int, finished: int) -> None:
        """A run of ``epochs`` × ``steps`` begins, ``finished`` epochs being done already."""
        self._task = self._bar.add_task(
            self._title, total=epochs * steps, completed=finished * steps, figures=""
        )

    def step(self) -> None:
        """One optimiser step is done."""
        if self._task is not None:
            self._bar.advance(self._task)

    def epoch(self, row: dict[str, float]) -> None:
        """An epoch is done with these figures."""
        if self._task is None:
            return
        shown = [f"epoch {int(row['epoch'])}"]
        shown += [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in row.items() if k[:5] == "loss_"]
        shown += [
            f"{label} {row[key]:.1f} %"
            for label, key in (("clean", "clean_acc"), ("robust", "robust_acc"))
            if key in row
        ]
        self._bar.update(self._task, figures=" · ".join(shown))
