"""The per-sample table: :class:`SampleOutcome` rows ↔ Arrow ↔ Parquet, without loss.

Fixed columns come first, in the order of ``SampleOutcome``'s fields; then one column for each
metric, sorted by name. A metric that a sample lacks is null and one that is undefined is NaN, so
that reading gives back exactly what was written. The bytes depend on the content alone.

A row as an object takes some ten times what it takes in a table, so large tables are made of rows that
come one after the other, and give them back so (:class:`SampleRows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from robench.errors import CorruptRecordError, StoreError, one_line
from robench.records import Outcome, SampleOutcome

# Columns that every table has; all further ones are metrics.
_FIXED: dict[str, Any] = {
    "sample_id": pa.string(),
    "label": pa.int64(),
    "outcome": pa.string(),
    "clean_prediction": pa.int64(),
    "clean_margin": pa.float64(),
    "adv_prediction": pa.int64(),
    "adv_margin": pa.float64(),
    "broken_by": pa.string(),
    "perturbation_size": pa.float64(),
    "forwards": pa.int64(),
    "backwards": pa.int64(),
    "message": pa.string(),
}


_AT_A_TIME = 2048
"""Rows that are objects at the same time"""


class SampleRows(Collection[SampleOutcome]):
    """The rows of a ``pyarrow.Table``, each made when it is asked for."""

    def __init__(self, table: Any) -> None:
        self.table = table

    @classmethod
    def of(cls, samples: Iterable[SampleOutcome]) -> SampleRows:
        """Of rows that are taken one after the other; errors as of :func:`samples_to_table`."""
        return cls(samples_to_table(samples))

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[SampleOutcome]:
        if missing := [name for name in _FIXED if name not in self.table.column_names]:
            raise CorruptRecordError(f"the table lacks column {missing[0]!r}")
        for start in range(0, len(self), _AT_A_TIME):
            for number, row in enumerate(self.table.slice(start, _AT_A_TIME).to_pylist(), start):
                yield _sample(row, number)

    def __contains__(self, sample: object) -> bool:
        return any(row == sample for row in self)

    def at(self, places: Sequence[int]) -> list[SampleOutcome]:
        """The rows at some places."""
        return list(SampleRows(self.table.take(pa.array(places, pa.int64()))))

    def of_outcome(self, outcome: Outcome) -> SampleRows:
        """Those that ended so."""
        return SampleRows(self.table.filter(pc.equal(self.table["outcome"], outcome.value)))

    def counts(self) -> dict[Outcome, int]:
        """How many ended how; none that did not occur."""
        found = pc.value_counts(self.table["outcome"]).to_pylist()
        return {Outcome(each["values"]): each["counts"] for each in found}


def samples_to_table(samples: Iterable[SampleOutcome]) -> Any:
    """Rows → ``pyarrow.Table``.

    Raises:
        StoreError: a metric bears the name of a fixed column, a sample id repeats, or a number
            does not fit its column.
    """
    if isinstance(samples, SampleRows):
        return samples.table
    left = iter(samples)
    tables = [_table_of(list(islice(left, _AT_A_TIME)))]
    while rows := list(islice(left, _AT_A_TIME)):
        tables.append(_table_of(rows))
    table = joined(tables)
    ids = Counter(table["sample_id"].to_pylist())
    if len(ids) != len(table):
        repeated = next(name for name, count in ids.items() if count > 1)
        raise StoreError(f"sample id {repeated!r} occurs twice", where="table")
    return table


def joined(tables: Sequence[Any]) -> Any:
    """The rows of some tables, one after the other; a metric that a table lacks its samples lack."""
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return table.select([*_FIXED, *sorted(set(table.column_names) - set(_FIXED))])


def _table_of(samples: Sequence[SampleOutcome]) -> Any:
    metrics = sorted({name for sample in samples for name in sample.values})
    if clash := sorted(set(metrics) & set(_FIXED)):
        raise StoreError(f"metric {clash[0]!r} has the name of a fixed column", where="table")
    values = {name: [getattr(sample, name) for sample in samples] for name in _FIXED}
    values |= {name: [sample.values.get(name) for sample in samples] for name in metrics}
    columns: dict[str, Any] = {}
    for name, column in values.items():
        try:
            columns[name] = pa.array(column, type=_FIXED.get(name, pa.float64()))
        except (OverflowError, pa.ArrowException) as error:
            message = f"column {name!r} cannot hold its values: {error}"
            raise StoreError(message, where="table") from error
    return pa.table(columns)


def table_to_samples(table: Any) -> list[SampleOutcome]:
    """``pyarrow.Table`` → rows.

    Raises:
        CorruptRecordError: a fixed column is missing or a value makes no sense.
    """
    return list(SampleRows(table))


def _sample(row: dict[str, Any], number: int) -> SampleOutcome:
    fixed = {name: row.pop(name) for name in _FIXED}
    values = {name: value for name, value in row.items() if value is not None}
    try:
        fixed["outcome"] = Outcome(fixed["outcome"])
        return SampleOutcome(**fixed, values=values)
    except (ValueError, ValidationError) as error:
        raise CorruptRecordError(f"row {number} of the table is invalid: {error}") from error


def metric_columns(table: Any) -> list[str]:
    """The names of a ``pyarrow.Table``'s columns that are no fixed ones.

    Raises:
        CorruptRecordError: a fixed column is missing, or one is of another type than it should be.
    """
    types = {field.name: field.type for field in table.schema}
    wanted = dict.fromkeys(types, pa.float64()) | _FIXED
    if len(types) < len(table.schema) or types != wanted:
        raise CorruptRecordError("its columns are not those of samples")
    return [name for name in types if name not in _FIXED]


def table_to_frame(table: Any) -> pd.DataFrame:
    """``pyarrow.Table`` → DataFrame: whole numbers stay whole (``Int64``), absent ones are NA.

    Metric columns are ``float64``; absent and undefined are both NaN there.
    """
    integers = {pa.int64(): pd.Int64Dtype()}
    frame: pd.DataFrame = table.to_pandas(types_mapper=integers.get, use_threads=False)
    return frame


def parquet_bytes(table: Any) -> bytes:
    """``pyarrow.Table`` → Parquet file content."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", version="2.6")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def table_from_parquet(content: bytes) -> Any:
    """Parquet file content → ``pyarrow.Table``.

    Raises:
        CorruptRecordError: the bytes are no Parquet file.
    """
    # `pq.read_table` reads ahead in Arrow's own I/O threads, whatever `use_threads` says, and these
    # hold the Python object that they read from. A thread that lets go of it while the interpreter
    # ends asks for the lock of an interpreter that is gone: Python ends the thread by unwinding it,
    # C++ forbids that, and the process aborts. Without reading ahead no such thread is started.
    try:
        file = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)
        return file.read(use_threads=False)
    except Exception as error:  # A damaged file makes the decoder raise almost anything.
        raise CorruptRecordError(
            f"the table is no readable Parquet file: {one_line(error)}"
        ) from error
