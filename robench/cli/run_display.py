"""What the command line says of a run while it runs.

Loads Rich and pydantic, so the commands import it when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from robench.cli.options import is_quiet
from robench.cli.output import survived, targeted_success
from robench.formatting import number
from robench.progress import ProgressBars
from robench.records import EvaluationRecord, Outcome
from robench.reporting.board import rows_of

if TYPE_CHECKING:
    from robench.results import StoredRecord


class RunDisplay(ProgressBars):
    """Shows a run on stderr: its bars on a terminal, elsewhere (a log, a pipe) a line for each of the
    ``jobs``, as many as records; and a line for each model.
    """

    def __init__(self, jobs: int, console: Console | None = None) -> None:
        super().__init__(jobs, console)
        self._console.quiet |= is_quiet()

    def __enter__(self) -> RunDisplay:
        super().__enter__()
        return self

    def job_finished(self, stored: StoredRecord) -> None:
        """A record is in the store."""
        cached = self._current is None
        super().job_finished(stored)
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
        if records and records[0].record.threat_model.corrupted is not None:
            self._corrupted_finished(model, records)
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

    def _corrupted_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        from robench.reporting.corruptions import corruption_table
        from robench.reporting.model_results import collect
        from robench.results import RecordFilter

        for row in rows_of(corruption_table(collect(records, RecordFilter(goal="corrupted")))):
            self._console.print(
                f"{model}: {number(row['corruptions_acc'])} % under {row['attack']} "
                f"({number(row['corruptions_acc_low'])} – {number(row['corruptions_acc_high'])}), "
                f"clean {number(row['clean_acc'])} %",
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


def _job_line(record: EvaluationRecord, cached: bool) -> str:
    errored = record.count(Outcome.ERRORED)
    said = f"{number(survived(record))} % survive"
    if record.threat_model.targets is not None:
        said = f"{number(targeted_success(record))} % reach their target under"
    if record.threat_model.corrupted is not None:
        said = f"{number(survived(record))} % are classified correctly under each of"
    parts = [f"{record.model.name} · {record.attack.name}: {said} {record.threat_model}"]
    parts += [f"{errored} errored"] if errored else []
    parts += [f"part {p.index} of {p.count}"] if (p := record.part) is not None else []
    parts.append("stored before" if cached else f"{number(record.cost.seconds)} s")
    return ", ".join(parts)
