"""Traces: what the searches of a job saw at each step, kept beside its record on request.

While a job runs, its processes append rows to files of their own, one for each block of samples; what
was written after the last snapshot of an interrupted job is written again, and the same. Once the job
is done a block at a time is put in order and becomes a row group of one Parquet file: no process ever
holds more than a block of it. The file is the same whatever the batch, the order, the workers and the
interruptions were.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robench.errors import CorruptRecordError, one_line
from robench.files import file_error, file_errors, remove

Rows = npt.NDArray[Any]
"""Of :data:`ROW`."""

ROW = np.dtype(
    [
        ("run", "<i4"),
        ("sample", "<i4"),
        ("search", "<i4"),
        ("step", "<i4"),
        ("margin", "<f4"),
        ("loss", "<f4"),
        ("gradient_norm", "<f4"),
    ]
)
"""One step of one search: the stage run of the plan, the position of what is attacked, the number of
the search in the order that they are made, the steps taken, and what was seen, NaN where nothing was.
A row with the step −1 says that ``search`` settled its sample: later ones count for nothing."""

_SEEN = ["margin", "loss", "gradient_norm"]
_BLOCK = 64
"""Samples whose rows are held at a time"""


class TraceParts:
    """The rows of a job that is not done yet, beside its progress at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def writer(self) -> Callable[[Rows], None]:
        """What keeps rows, of one search in one thread; they are in a file when it returns.

        It raises a ``StoreError`` where they cannot be written.
        """
        own = f"{os.getpid()}.{threading.get_native_id()}-{time.time_ns()}"

        def keep(rows: Rows) -> None:
            blocks = rows["sample"] // _BLOCK
            for block in np.unique(blocks).tolist():
                path = self._path.with_suffix(f".trace-{block}-{own}")
                with file_errors("written", path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("ab") as stream:
                        stream.write(rows[blocks == block].tobytes())

        return keep

    def blocks(self) -> Iterator[Rows]:
        """The rows that count, in order of sample, run, search and step, a block at a time.

        Raises:
            StoreError: they cannot be read.
        """
        by_block: dict[int, list[Path]] = {}
        for path in self._files():
            by_block.setdefault(
                int(path.name.partition(".trace-")[2].partition("-")[0]), []
            ).append(path)
        for block in sorted(by_block):
            yield _settled(np.concatenate([_read(path) for path in by_block[block]]))

    def clear(self) -> None:
        """Forget them.

        Raises:
            StoreError: the files cannot be removed.
        """
        for path in self._files():
            remove(path)

    def _files(self) -> list[Path]:
        return sorted(self._path.parent.glob(f"{self._path.stem}.trace-*-*-*"))


def _read(path: Path) -> Rows:
    with file_errors("read", path):
        content = path.read_bytes()
    # A process that was killed may have left the last row unfinished.
    return np.frombuffer(content[: len(content) // ROW.itemsize * ROW.itemsize], ROW)


def _settled(rows: Rows) -> Rows:
    """Each row once, in order, of searches up to the one that settled its sample."""
    order = np.lexsort((rows["step"], rows["search"], rows["run"], rows["sample"]))
    rows = rows[order]
    place = rows[["sample", "run", "search", "step"]]
    rows = rows[np.concatenate(([True], place[1:] != place[:-1]))] if len(rows) else rows
    marks = rows[rows["step"] < 0]
    last = {
        (s, r): q
        for s, r, q in zip(*(marks[n].tolist() for n in ("sample", "run", "search")), strict=True)
    }
    steps = rows[rows["step"] >= 0]
    pairs = zip(steps["sample"].tolist(), steps["run"].tolist(), strict=True)
    settled = np.array([last.get(pair, -1) for pair in pairs], np.int64)
    return steps[steps["search"] <= settled]


@dataclass(frozen=True)
class Traced:
    """What a job's numbers stand for: of each run its stage, and whether it was a second search near
    the boundary; of each position the sample, and the target if there is one."""

    stages: Sequence[tuple[str, bool]]
    sample_ids: Sequence[str]
    targets: Sequence[int] | None = None


def write_trace(stream: BinaryIO, parts: TraceParts, names: Traced) -> None:
    """Write what counts of a job's rows as Parquet: :func:`read_trace`."""
    schema = pa.schema(
        [
            ("sample_id", pa.string()),
            *([] if names.targets is None else [("target", pa.int32())]),
            ("stage", pa.string()),
            ("recheck", pa.bool_()),
            ("search", pa.int32()),
            ("step", pa.int32()),
            *((name, pa.float32()) for name in _SEEN),
        ]
    )
    with pq.ParquetWriter(stream, schema) as writer:
        for rows in parts.blocks():
            samples, runs = rows["sample"].tolist(), rows["run"].tolist()
            columns: dict[str, Any] = {
                "sample_id": [names.sample_ids[i] for i in samples],
                "stage": [names.stages[run][0] for run in runs],
                "recheck": [names.stages[run][1] for run in runs],
            }
            if names.targets is not None:
                columns["target"] = [names.targets[i] for i in samples]
            columns |= {name: rows[name] for name in ("search", "step", *_SEEN)}
            writer.write_table(pa.table(columns).select(schema.names).cast(schema))


def read_trace(path: Path) -> Iterator[pd.DataFrame]:
    """A job's trace, some samples at a time.

    A row a step, in order of sample, stage, search and step: ``sample_id`` (``target`` too where the
    threat model has any), ``stage``, ``recheck`` (a second search near the boundary), ``search``,
    ``step``, ``margin`` (of the point in the ball), ``loss`` and ``gradient_norm`` (L2; means over the
    step's gradient passes), NaN where there was none. Attacks without gradients have rows where the margin
    got smaller alone.

    Raises:
        StoreError: it cannot be read.
        CorruptRecordError: it is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group).to_pandas()
    except OSError as error:
        raise file_error("read", path, error) from error
    except pa.ArrowException as error:
        raise CorruptRecordError(f"no trace: {one_line(error)}", where=path) from error
