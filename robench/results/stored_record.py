"""A record together with its per-sample table."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from robench.errors import StoreError
from robench.formatting import plain
from robench.records import DatasetSpec, EvaluationRecord, ModelSummary, SampleOutcome
from robench.results.documents import first_problem
from robench.results.tables import samples_to_table, table_to_frame, table_to_samples

__all__ = ["StoredRecord"]


@dataclass(frozen=True)
class StoredRecord:
    """A record with its per-sample table. :meth:`of` makes one in memory, without a store."""

    record: EvaluationRecord
    arrow: Any = field(repr=False)
    """The table as a ``pyarrow.Table``."""
    path: Path | None = None
    """The JSON's place; None: in memory only."""
    arrays_path: Path | None = None
    """The npz's place, if arrays were kept."""

    @classmethod
    def of(cls, record: EvaluationRecord, samples: Sequence[SampleOutcome]) -> StoredRecord:
        """Record and rows that were just computed.

        Raises:
            StoreError: the rows contradict the record's counts, or do not make a table.
        """
        counts = Counter(sample.outcome for sample in samples)
        if {k: v for k, v in record.counts.items() if v} != dict(counts):
            raise StoreError(
                f"record counts {dict(record.counts)} but its samples are {dict(counts)}",
                where=record.key,
            )
        return cls(_normalised(record), samples_to_table(samples))

    def shown_as(
        self,
        attack: str,
        model: ModelSummary | None = None,
        dataset: DatasetSpec | None = None,
    ) -> StoredRecord:
        """The same numbers under the names of whoever asks, in memory; the files stay as they are.

        A key holds what decides the numbers, and no name: two suites may call one attack by two
        names, two cards may describe one network.

        Args:
            attack: the column's name; ``broken_by`` follows, where it was that of the attack.
            model: None: the record's own.
            dataset: likewise.
        """
        record, arrow = self.record, self.arrow
        changes: dict[str, Any] = {"model": model or record.model}
        changes["dataset"] = dataset or record.dataset
        changes["attack"] = record.attack.model_copy(update={"name": attack})
        changed = record.model_copy(update=changes)
        if changed == record:
            return self
        if changed.attack != record.attack and not record.attack.stages:
            place = arrow.column_names.index("broken_by")
            names = [attack if n == record.attack.name else n for n in arrow[place].to_pylist()]
            arrow = arrow.set_column(place, arrow.field(place), [names])
        return StoredRecord(changed, arrow, self.path, self.arrays_path)

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """One row a sample; columns as in :mod:`robench.results.tables`."""
        return table_to_frame(self.arrow)

    @functools.cached_property
    def samples(self) -> list[SampleOutcome]:
        """The rows as :class:`SampleOutcome`, exactly as they were written."""
        return table_to_samples(self.arrow)


def _normalised(record: EvaluationRecord) -> EvaluationRecord:
    """The record with every undefined number None, as JSON has no NaN."""
    content = plain(record.model_dump(mode="json"))
    classes = content["class_robust_acc"]
    content["class_robust_acc"] = {k: v for k, v in classes.items() if v is not None}
    try:
        return EvaluationRecord.model_validate(content)
    except ValidationError as error:
        raise StoreError(
            f"the record is invalid: {first_problem(error)}", where=record.key
        ) from error
