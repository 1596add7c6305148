"""The per-sample table: :class:`SampleOutcome` rows ↔ Arrow ↔ Parquet, without loss.

Fixed columns come first, in the order of ``SampleOutcome``'s fields; then one column for each
metric, sorted by name. A metric that a sample lacks is null and one that is undefined is NaN, so
that reading gives back exactly what was written. The bytes depend on the content alone.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
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


def samples_to_table(samples: Sequence[SampleOutcome]) -> Any:
    """Rows → ``pyarrow.Table``.

    Raises:
        StoreError: a metric bears the name of a fixed column, a sample id repeats, or a number
            does not fit its column.
    """
    metrics = sorted({name for sample in samples for name in sample.values})
    if clash := sorted(set(metrics) & set(_FIXED)):
        raise StoreError(f"metric {clash[0]!r} has the name of a fixed column", where="table")
    ids = [sample.sample_id for sample in samples]
    if len(set(ids)) != len(ids):
        repeated = next(name for name in ids if ids.count(name) > 1)
        raise StoreError(f"sample id {repeated!r} occurs twice", where="table")
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
    if missing := [name for name in _FIXED if name not in table.column_names]:
        raise CorruptRecordError(f"the table lacks column {missing[0]!r}")
    samples = []
    for number, row in enumerate(table.to_pylist()):
        fixed = {name: row.pop(name) for name in _FIXED}
        values = {name: value for name, value in row.items() if value is not None}
        try:
            fixed["outcome"] = Outcome(fixed["outcome"])
            samples.append(SampleOutcome(**fixed, values=values))
        except (ValueError, ValidationError) as error:
            raise CorruptRecordError(f"row {number} of the table is invalid: {error}") from error
    return samples


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
