"""A record together with its per-sample table, and its JSON.

The JSON holds the record, the names and checksums of its files, and its own checksum.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa

from robench.errors import CorruptRecordError, StoreError, one_line
from robench.files import atomic_write, file_error, file_errors, file_sha256, read_bytes
from robench.formatting import plain
from robench.records import (
    RECORD_SCHEMA_VERSION,
    DatasetSpec,
    EvaluationRecord,
    ModelSummary,
    Outcome,
    SampleOutcome,
    canonical_hash,
    parse,
)
from robench.results.tables import SampleRows, samples_to_table, table_to_frame

_FORMAT = "robench-record"


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
    trace_path: Path | None = None
    """The trace's place, if one was kept: :func:`robench.results.traces.read_trace`."""

    @classmethod
    def of(cls, record: EvaluationRecord, samples: Collection[SampleOutcome]) -> StoredRecord:
        """Record and rows that were just computed.

        Raises:
            StoreError: the rows contradict the record's counts, or do not make a table.
        """
        rows = SampleRows.of(samples)
        counts = rows.counts()
        if {k: v for k, v in record.counts.items() if v} != counts:
            raise StoreError(
                f"record counts {dict(record.counts)} but its samples are {counts}",
                where=record.key,
            )
        return cls(_normalised(record), rows.table)

    @property
    def folder(self) -> Path:
        """The results folder that it was read from or written to; parts of jobs have their own."""
        assert self.path is not None
        return self.path.parents[2]

    def shown_as(
        self,
        attack: str,
        model: ModelSummary | None = None,
        dataset: DatasetSpec | None = None,
    ) -> StoredRecord:
        """The same numbers under the names of whoever asks, in memory; the files stay as they are.

        A key holds what decides the numbers, and no name: two suites may call one attack by two
        names, two cards may describe one network. ``broken_by`` follows where it was the attack's
        name; model and data set stay as they are where None is given.
        """
        record, arrow = self.record, self.arrow
        changed = record.model_copy(
            update={
                "model": model or record.model,
                "dataset": dataset or record.dataset,
                "attack": record.attack.model_copy(update={"name": attack}),
            }
        )
        if changed == record:
            return self
        if changed.attack != record.attack and not record.attack.stages:
            place = arrow.column_names.index("broken_by")
            names = [attack if n == record.attack.name else n for n in arrow[place].to_pylist()]
            # Of its type also where nothing is broken, and all of them are None.
            column = pa.array(names, arrow.field(place).type)
            arrow = arrow.set_column(place, arrow.field(place), column)
        return StoredRecord(changed, arrow, self.path, self.arrays_path, self.trace_path)

    def same_outcomes(self, samples: Collection[SampleOutcome]) -> bool:
        """Whether rows say the same as these of every sample: all but names, passes, messages."""
        told = ["broken_by", "forwards", "backwards", "message"]
        tables = (self.arrow, samples_to_table(samples))
        one, two = (table_to_frame(table.drop_columns(told)) for table in tables)
        return one.equals(two)

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """One row a sample; columns as in :mod:`robench.results.tables`."""
        return table_to_frame(self.arrow)

    @property
    def eligible(self) -> pd.DataFrame:
        """The rows of :attr:`table` whose label is not the target that all have."""
        return self.table[self.table["outcome"] != Outcome.AT_TARGET]

    @functools.cached_property
    def samples(self) -> list[SampleOutcome]:
        """The rows as :class:`SampleOutcome`, exactly as they were written."""
        return list(self.rows)

    @property
    def rows(self) -> SampleRows:
        """The same, each made when it is asked for."""
        return SampleRows(self.arrow)


def _normalised(record: EvaluationRecord) -> EvaluationRecord:
    """The record as it will be read: every undefined number None, names in the JSON's order."""
    content = json.loads(json.dumps(plain(record.model_dump(mode="json")), sort_keys=True))
    classes = content["class_robust_acc"]
    content["class_robust_acc"] = {k: v for k, v in classes.items() if v is not None}
    return parse(EvaluationRecord, content, StoreError, where=record.key)


def render_document(record: EvaluationRecord, files: Mapping[str, Any]) -> bytes:
    """The JSON of a record; the same content always gives the same bytes."""
    content = record.model_dump(mode="json")
    document = {"format": _FORMAT, "record": content, "files": dict(files)}
    document["checksum"] = canonical_hash(document)
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write_data_file(
    path: Path, suffix: str, content: bytes | Callable[[BinaryIO], object], created: list[Path]
) -> dict[str, Any]:
    """:func:`robench.files.atomic_write` of a file beside the JSON ``path``, named by its checksum.

    Files made on the way are added to ``created``, so that a failure can remove them.

    Returns:
        Name, checksum and size, for the JSON.
    """
    # Written also where it exists: the one that is there may be damaged.
    draft = path.with_suffix(f".{os.getpid()}.draft{suffix}")
    created.append(draft)
    atomic_write(draft, content)
    with file_errors("written", draft):
        digest, size = file_sha256(draft), draft.stat().st_size
        target = path.with_suffix(f".{digest[:12]}{suffix}")
        if not target.exists():
            created.append(target)
        os.replace(draft, target)
    return {"name": target.name, "sha256": digest, "bytes": size}


def read_document(path: Path, key: str) -> dict[str, Any]:
    """The JSON of ``key`` as plain data: ``record`` and ``files``, checksum verified.

    Raises:
        StoreError: there is none, or it cannot be read.
        CorruptRecordError: it is damaged, or another key's.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError as error:
        raise StoreError("there is no such record", where=path) from error
    except OSError as error:
        raise file_error("read", path, error) from error
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptRecordError(f"no JSON: {one_line(error)}", where=path) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise CorruptRecordError("not a robench record", where=path)
    checksum = document.pop("checksum", None)
    if checksum != canonical_hash(document):
        raise CorruptRecordError("the record's checksum is wrong", where=path)
    record, files = document.get("record"), document.get("files")
    if not isinstance(record, dict) or record.get("key") != key:
        raise CorruptRecordError("the record's key is not its file's name", where=path)
    if not isinstance(files, dict) or "table" not in files:
        raise CorruptRecordError("names no table", where=path)
    for entry in files.values():
        name = entry.get("name") if isinstance(entry, dict) else None
        # A record's files lie beside it: what it names leads nowhere else.
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or not {"sha256", "bytes"} <= {*entry}
        ):
            raise CorruptRecordError(f"names the file {name!r}, not one beside it", where=path)
    return document


def parse_record(content: dict[str, Any], path: Path) -> EvaluationRecord:
    """A document's ``record``.

    Raises:
        StoreError: it has another schema version. It may be perfectly good, so this is no reason
            to set it aside.
        CorruptRecordError: it does not follow the schema.
    """
    version = content.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise CorruptRecordError(f"schema_version is {version!r}, not a number", where=path)
    if version != RECORD_SCHEMA_VERSION:
        raise StoreError(
            f"record has schema version {version}; this robench reads {RECORD_SCHEMA_VERSION}",
            where=path,
            hint="Read it with the robench that wrote it, or evaluate in another results folder",
        )
    return parse(EvaluationRecord, content, CorruptRecordError, where=path)
