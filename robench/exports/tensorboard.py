"""TensorBoard: a run for each record, and one for each stage whose trace was kept."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from robench.errors import MissingDependencyError
from robench.exports.material import Material
from robench.exports.trackers import about, figures
from robench.files import ensure_writable, remove
from robench.formatting import number
from robench.reporting.traces import stage_traces
from robench.results import StoredRecord
from robench.results.traces import read_trace
from robench.text import file_name, markdown


def write_events(material: Material, folder: Path) -> list[Path]:
    """The records' runs; returns their folders."""
    board = TensorBoard(folder)
    return [run for stored in material.records for run in board.write(stored)]


class TensorBoard:
    """A folder of runs: ``tensorboard --logdir FOLDER`` shows them.

    A record's run is named after model, attack and key, and has its numbers as scalars and a table of
    what it is of. A stage's is below it, and has ``best_margin``, ``best_loss`` and ``gradient_norm`` by
    step, each as ``median``, ``low`` and ``high`` over the searches, the latter two the quartiles. What
    was written of a record before is replaced.
    """

    def __init__(self, folder: Path) -> None:
        """Write into ``folder``.

        Raises:
            MissingDependencyError: the package tensorboard is not installed.
            StoreError: the folder cannot be written.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter  # optional
        except ImportError as error:
            raise MissingDependencyError(
                "events for TensorBoard need the package 'tensorboard', which is not installed",
                hint="pip install 'robench[tensorboard]'",
            ) from error
        ensure_writable(folder)
        self._writer: Any = SummaryWriter
        self._folder = folder

    @property
    def place(self) -> str:
        """What shows the runs."""
        return f"tensorboard --logdir {self._folder}"

    def log(self, stored: StoredRecord) -> bool:
        """Write a record's runs."""
        self.write(stored)
        return True

    def write(self, stored: StoredRecord) -> list[Path]:
        """Write a record's runs; their folders, the record's own first."""
        record = stored.record
        name = "-".join((record.model.id, record.attack.name, record.key[:8]))
        own = _fresh(self._folder / file_name(name))
        with self._writer(str(own)) as writer:
            for figure, value in figures(stored).items():
                writer.add_scalar(figure, value, 0)
            writer.add_text("record", _table(stored), 0)
        runs = [own]
        traces = (
            []
            if stored.trace_path is None
            else stage_traces(partial(read_trace, stored.trace_path))
        )
        for trace in traces:
            runs.append(_fresh(own / file_name(trace.stage)))
            with self._writer(str(runs[-1])) as writer:
                for quantity, spread in trace.spreads.items():
                    for part in ("median", "low", "high"):
                        for step, value in zip(trace.steps, getattr(spread, part), strict=True):
                            if not math.isnan(value):
                                writer.add_scalar(f"{quantity}/{part}", value, int(step))
        return runs


def _fresh(run: Path) -> Path:
    """A run's folder, without the events that it may hold."""
    for old in run.glob("events.out.tfevents.*"):
        remove(old)
    return run


def _table(stored: StoredRecord) -> str:
    """What a record is of, what it counts and what speaks against it, as Markdown."""
    rows = {
        **about(stored),
        **{name: number(value, 4) for name, value in figures(stored).items()},
        **{flag.name: f"{flag.severity}: {flag.evidence}" for flag in stored.record.flags},
    }
    lines = [f"| {markdown(name)} | {markdown(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
