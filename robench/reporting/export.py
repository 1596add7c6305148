"""Tables of records: CSV, and one long table of all samples."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from robench.errors import UsageError
from robench.files import atomic_write
from robench.reporting.model_results import GroupKey
from robench.results import StoredRecord
from robench.text import cell, file_name


def samples_frame(records: Iterable[StoredRecord]) -> pd.DataFrame:
    """One row for every sample of every record, with what the record is about in front.

    The first columns are ``key``, ``model``, ``dataset``, ``norm``, ``eps`` (as written),
    ``attack`` and ``seed``, and ``targets`` of those that were after any; then those of the records' own tables. A metric that a record lacks
    is NaN there.

    Raises:
        UsageError: there are no records.
    """
    parts = []
    for stored in records:
        record = stored.record
        about: dict[str, str | int] = {
            "key": record.key,
            "model": record.model.id,
            "dataset": record.dataset.name,
            "norm": record.threat_model.norm,
            "eps": record.threat_model.written,
            "attack": record.attack.name,
            "seed": record.seed,
        }
        if record.threat_model.targets is not None:
            about["targets"] = record.threat_model.targets
        parts.append(pd.DataFrame(about, index=stored.table.index).join(stored.table))
    if not parts:
        raise UsageError("there are no records to export", hint="Check the folder and the filters")
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    # Columns without a single value would make the result's types depend on the others' order.
    filled = [part.dropna(axis="columns", how="all") for part in parts]
    return pd.concat(filled, ignore_index=True).reindex(columns=list(columns))


def csv_bytes(frame: pd.DataFrame, **options: Any) -> bytes:
    """A table as UTF-8 CSV; undefined is empty, numbers keep all their digits unless ``options``
    of pandas say otherwise."""
    # A name that a spreadsheet would take for a formula stays text.
    plain = frame.copy()
    for name in plain.select_dtypes(exclude=["number", "bool"]):
        plain[name] = [cell(v) if isinstance(v, str) else v for v in plain[name]]
    text: str = plain.rename(columns=cell).to_csv(index=False, lineterminator="\n", **options)
    return text.encode(errors="backslashreplace")


def group_slug(group: GroupKey) -> str:
    """A folder's name for a group: ``digits-Linf-0.2-n500-seed0``."""
    written = (group.written or group.threat).replace("/", "_")
    return f"{file_name(group.dataset)}-{written}-n{group.n}-seed{group.seed}"


def write_tables(folder: Path, **frames: pd.DataFrame) -> list[Path]:
    """Write each frame as ``NAME.csv``.

    Raises:
        StoreError: a file cannot be written.
    """
    files = {folder / f"{name}.csv": frame for name, frame in frames.items()}
    for path, frame in files.items():
        atomic_write(path, csv_bytes(frame))
    return list(files)
