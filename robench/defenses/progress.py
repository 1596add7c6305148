"""A training run's progress bar: rate, time left, losses, validation robustness."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["TrainingProgress"]


class TrainingProgress(Progress):
    """Shows a run on stderr; a context manager.

    Args:
        title: what is being trained.
        shown: False: draws nothing.
        console: where to draw; None: stderr.
    """

    def __init__(self, title: str, *, shown: bool = True, console: Console | None = None) -> None:
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            disable=not shown,
        )
        self._run = self.add_task(title, total=None, figures="")

    def begin(self, epochs: int, steps: int, finished: int) -> None:
        """A run of ``epochs`` × ``steps`` begins, ``finished`` epochs being done already."""
        self.update(self._run, total=epochs * steps, completed=finished * steps)

    def step_done(self) -> None:
        """One optimiser step is done."""
        self.advance(self._run)

    def epoch_done(self, row: dict[str, float]) -> None:
        """An epoch is done with these figures."""
        shown = [f"epoch {int(row['epoch'])}"]
        shown += [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in row.items() if k[:5] == "loss_"]
        shown += [
            f"{label} {row[key]:.1f} %"
            for label, key in (("clean", "clean_acc"), ("robust", "robust_acc"))
            if key in row
        ]
        self.update(self._run, figures=" · ".join(shown))
