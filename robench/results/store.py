"""The results folder: one JSON and one table for each evaluated job, named by its key.

::

    records/ab/abcd….json              the record, the names and checksums of its files
    records/ab/abcd….<digest>.parquet  one row a sample
    records/ab/abcd….<digest>.npz      arrays on request: adversarial inputs, maps
    progress/abcd….bin                 an unfinished job
    claims/abcd….lock                  who works on a job now
    quarantine/                        damaged files with the reason, never deleted

The JSON is written last and replaced in one step, and data files bear the first digits of their
own checksum, so a reader always finds files that belong together, with no lock, also while
somebody writes the same record anew. What a crash leaves behind is never mistaken for a record;
:meth:`Store.prune` removes it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import re
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from robench.errors import CorruptRecordError, StoreError, UsageError
from robench.records import EvaluationRecord, SampleOutcome, canonical_hash
from robench.results.atomic import atomic_write, file_sha256, stale_temporaries, store_error
from robench.results.claims import Claim, try_claim, wait_for_claim
from robench.results.migrations import migrate
from robench.results.progress import Progress
from robench.results.tables import (
    parquet_bytes,
    samples_to_table,
    table_from_parquet,
    table_to_frame,
    table_to_samples,
)

__all__ = ["Problem", "Scan", "Store", "StoredRecord"]

log = logging.getLogger("robench.results")

_FORMAT = "robench-record"
_KEY = re.compile(r"[0-9a-f]{64}")
_ADVERSARIAL = "adversarial"
_READ_ATTEMPTS = 5

Array = npt.NDArray[Any]


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

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """One row a sample; columns as in :mod:`robench.results.tables`."""
        return table_to_frame(self.arrow)

    @functools.cached_property
    def samples(self) -> list[SampleOutcome]:
        """The rows as :class:`SampleOutcome`, exactly as they were written."""
        return table_to_samples(self.arrow)


@dataclass(frozen=True)
class Problem:
    """A record that could not be read."""

    key: str
    path: Path
    error: StoreError


@dataclass(frozen=True)
class Scan:
    """All records of a folder: those that are sound and those that are not."""

    records: tuple[StoredRecord, ...]
    problems: tuple[Problem, ...]


class Store:
    """A results folder. Making the object touches nothing; writing makes the folders.

    Several processes may use one folder at the same time.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    # --- records ---------------------------------------------------------------------------

    def path_of(self, key: str) -> Path:
        """Where the JSON of ``key`` is or would be.

        Raises:
            UsageError: the key is not 64 hexadecimal digits.
        """
        if not _KEY.fullmatch(key):
            raise UsageError(f"{key!r} is not a record key", hint="A key has 64 hex digits")
        return self.folder / "records" / key[:2] / f"{key}.json"

    def has(self, key: str) -> bool:
        """Whether a complete record is there. Its checksums are looked at on reading."""
        return self.path_of(key).is_file()

    def keys(self) -> list[str]:
        """The keys of all records, sorted."""
        found = (path.stem for path in (self.folder / "records").glob("??/*.json"))
        return sorted(key for key in found if _KEY.fullmatch(key))

    def write(
        self,
        record: EvaluationRecord,
        samples: Sequence[SampleOutcome],
        *,
        adversarial: Array | None = None,
        arrays: Mapping[str, Array] | None = None,
    ) -> StoredRecord:
        """Keep a finished job, in place of an earlier record with its key.

        Args:
            record: its ``counts`` must agree with the samples. Undefined (NaN) figures become
                None; classes without a defined accuracy are left out.
            samples: one a row, in any order, ids distinct.
            adversarial: inputs in the order of ``samples``, shape (n, C, H, W), in [0, 1].
            arrays: further arrays under their names (clean inputs, attention maps).

        Raises:
            StoreError: the record and its rows contradict each other, or the folder cannot be
                written (full, read-only): then nothing of it is left behind.
        """
        stored = StoredRecord.of(record, samples)
        extra = dict(arrays or {})
        if adversarial is not None:
            if len(adversarial) != len(samples):
                raise StoreError(
                    f"{len(adversarial)} adversarial inputs for {len(samples)} samples",
                    where=record.key,
                )
            extra[_ADVERSARIAL] = adversarial
        path = self.path_of(record.key)
        created: list[Path] = []
        try:
            files = {"table": self._write_table(path, stored.arrow, created)}
            if extra:
                files["arrays"] = self._write_arrays(path, extra, created)
            atomic_write(path, _render(stored.record, files))
        except BaseException:
            for orphan in created:
                with contextlib.suppress(OSError):
                    orphan.unlink(missing_ok=True)
            raise
        arrays_path = path.parent / files["arrays"]["name"] if extra else None
        return StoredRecord(stored.record, stored.arrow, path, arrays_path)

    def read(self, key: str) -> StoredRecord:
        """The record of ``key``, its checksums and schema verified, migrated if it is old.

        Of its arrays, which may be large, only the size is looked at; :meth:`verify` and
        :meth:`read_arrays` look at their checksum.

        Raises:
            StoreError: there is none, it cannot be read, or its schema version is unknown.
            CorruptRecordError: it is damaged; :meth:`set_aside` moves it out of the way.
        """
        path = self.path_of(key)
        for attempt in range(_READ_ATTEMPTS):
            document = self._document(path, key)
            table_path = path.parent / document["files"]["table"]["name"]
            try:
                content = table_path.read_bytes()
            except FileNotFoundError as error:
                # Somebody may have written the record anew and pruned the old table.
                if attempt + 1 < _READ_ATTEMPTS:
                    time.sleep(0.01 * attempt)
                    continue
                raise CorruptRecordError("its table is missing", where=table_path) from error
            except OSError as error:
                raise store_error("read", table_path, error) from error
            break
        if hashlib.sha256(content).hexdigest() != document["files"]["table"]["sha256"]:
            raise CorruptRecordError("the table's checksum is wrong", where=table_path)
        arrow = table_from_parquet(content)
        arrays = document["files"].get("arrays")
        arrays_path = None if arrays is None else path.parent / arrays["name"]
        if arrays_path is not None:
            _check_size(arrays_path, arrays["bytes"])
        return StoredRecord(self._parse(document["record"], path, key), arrow, path, arrays_path)

    def verify(self, key: str) -> None:
        """Read all files of a record and compare every checksum.

        Raises:
            StoreError, CorruptRecordError: as :meth:`read`.
        """
        self.read(key)
        path = self.path_of(key)
        entry = self._document(path, key)["files"].get("arrays")
        if entry is not None:
            _check_digest(path.parent / entry["name"], entry["sha256"])

    def scan(self) -> Scan:
        """Read every record, setting apart those that cannot be read."""
        good: list[StoredRecord] = []
        bad: list[Problem] = []
        for key in self.keys():
            try:
                good.append(self.read(key))
            except StoreError as error:
                bad.append(Problem(key, self.path_of(key), error))
        return Scan(tuple(good), tuple(bad))

    def records(self) -> Iterator[StoredRecord]:
        """Every sound record, in order of keys; the others are logged as warnings."""
        for key in self.keys():
            try:
                yield self.read(key)
            except StoreError as error:
                log.warning("left out: %s", error)

    # --- arrays ----------------------------------------------------------------------------

    def read_arrays(self, key: str) -> dict[str, Array]:
        """The arrays kept with a record, by name; empty if none were.

        Raises:
            StoreError, CorruptRecordError: as :meth:`read`; the file's checksum is verified.
        """
        path = self.path_of(key)
        entry = self._document(path, key)["files"].get("arrays")
        if entry is None:
            return {}
        arrays_path = path.parent / entry["name"]
        _check_digest(arrays_path, entry["sha256"])
        try:
            with np.load(arrays_path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (ValueError, zipfile.BadZipFile) as error:
            raise CorruptRecordError(f"arrays cannot be read: {error}", where=arrays_path) from (
                error
            )
        except OSError as error:
            raise store_error("read", arrays_path, error) from error

    def read_adversarial(self, key: str) -> Array:
        """Adversarial inputs (n, C, H, W) in the order of the table's rows.

        Raises:
            StoreError: they were not kept; otherwise as :meth:`read_arrays`.
        """
        arrays = self.read_arrays(key)
        if _ADVERSARIAL not in arrays:
            raise StoreError(
                "the record has no adversarial inputs",
                where=self.path_of(key),
                hint="Run it again with --save-adversarial",
            )
        return arrays[_ADVERSARIAL]

    # --- damage, claims, progress ----------------------------------------------------------

    def set_aside(self, key: str, reason: str) -> Path | None:
        """Move all files of a damaged record to the quarantine, so that the job is done again.

        Returns:
            Their new folder; None if another process was quicker.

        Raises:
            StoreError: they cannot be moved.
        """
        path = self.path_of(key)
        # The JSON first: without it the rest is no record any more.
        files = [path, *sorted(path.parent.glob(f"{key}.*.*"))]
        return self._quarantine(files, key, reason)

    def claim(self, key: str, *, wait: float = 0.0) -> Claim:
        """Reserve a job for this process: ``with store.claim(key): …``.

        The claim ends with the block, or with the process, however that ends.

        Raises:
            StoreError: another process still holds it after ``wait`` seconds.
        """
        return wait_for_claim(self._claim_path(key), wait)

    def try_claim(self, key: str) -> Claim | None:
        """Like :meth:`claim`, but None if somebody else holds it."""
        return try_claim(self._claim_path(key))

    def progress(self, key: str) -> Progress:
        """Where the unfinished job ``key`` saves what it has done so far."""
        self.path_of(key)
        path = self.folder / "progress" / f"{key}.bin"
        return Progress(path, lambda bad, reason: self._quarantine([bad], key, reason))

    def remove(self, key: str) -> None:
        """Delete a record and its files.

        Raises:
            StoreError: they cannot be deleted.
        """
        path = self.path_of(key)
        for victim in (path, *sorted(path.parent.glob(f"{key}.*.*"))):
            _unlink(victim)

    def prune(self, *, older_than: float = 3600.0) -> list[Path]:
        """Delete what crashes and overwriting left: temporary files, tables without a record,
        progress of finished jobs, lock files nobody holds.

        Args:
            older_than: seconds; younger files may belong to a process that is writing now.

        Returns:
            The deleted files.
        """
        victims = list(stale_temporaries(self.folder, older_than=older_than))
        limit = time.time() - older_than
        for path in sorted((self.folder / "records").glob("??/*.*.*")):
            if not path.name.startswith(".") and not self._is_named_by_record(path):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime <= limit:
                        victims.append(path)
        for path in sorted((self.folder / "progress").glob("*.bin")):
            if _KEY.fullmatch(path.stem) and self.has(path.stem):
                victims.append(path)
        for path in sorted((self.folder / "claims").glob("*.lock")):
            claim = try_claim(path)
            if claim is not None:
                claim.release()
        for path in victims:
            _unlink(path)
        return victims

    # --- inside ----------------------------------------------------------------------------

    def _claim_path(self, key: str) -> Path:
        self.path_of(key)
        return self.folder / "claims" / f"{key}.lock"

    def _write_table(self, path: Path, arrow: Any, created: list[Path]) -> dict[str, Any]:
        content = parquet_bytes(arrow)
        digest = hashlib.sha256(content).hexdigest()
        target = path.with_suffix(f".{digest[:12]}.parquet")
        if not target.exists():
            created.append(target)
        # Written also where it exists: the one that is there may be damaged.
        atomic_write(target, content)
        return {"name": target.name, "sha256": digest, "bytes": len(content)}

    def _write_arrays(
        self, path: Path, arrays: Mapping[str, Array], created: list[Path]
    ) -> dict[str, Any]:
        # Too large to render in memory a second time: written once, named when its digest is
        # known.
        draft = path.with_suffix(f".{os.getpid()}.draft.npz")
        created.append(draft)

        def save(stream: BinaryIO) -> None:
            ordered = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
            np.savez_compressed(stream, allow_pickle=False, **ordered)

        atomic_write(draft, save)
        try:
            digest = file_sha256(draft)
            size = draft.stat().st_size
            target = path.with_suffix(f".{digest[:12]}.npz")
            if not target.exists():
                created.append(target)
            os.replace(draft, target)
        except OSError as error:
            raise store_error("write", draft, error) from error
        return {"name": target.name, "sha256": digest, "bytes": size}

    def _document(self, path: Path, key: str) -> dict[str, Any]:
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise StoreError("there is no such record", where=path) from error
        except OSError as error:
            raise store_error("read", path, error) from error
        try:
            document = json.loads(content)
        except ValueError as error:
            raise CorruptRecordError(f"no JSON: {error}", where=path) from error
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise CorruptRecordError("not a robench record", where=path)
        checksum = document.pop("checksum", None)
        if checksum != canonical_hash(document):
            raise CorruptRecordError("the record's checksum is wrong", where=path)
        if document["record"].get("key") != key:
            raise CorruptRecordError("the record's key is not its file's name", where=path)
        return document

    def _parse(self, plain: dict[str, Any], path: Path, key: str) -> EvaluationRecord:
        try:
            return EvaluationRecord.model_validate(migrate(plain))
        except StoreError as error:
            raise type(error)(error.what, where=path, hint=error.hint) from error
        except ValidationError as error:
            raise CorruptRecordError(f"the record is invalid: {_first(error)}", where=path) from (
                error
            )

    def _is_named_by_record(self, path: Path) -> bool:
        json_path = path.parent / f"{path.name.partition('.')[0]}.json"
        try:
            files = json.loads(json_path.read_bytes())["files"]
            return path.name in {entry["name"] for entry in files.values()}
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            # A damaged JSON may well have named it.
            return True

    def _quarantine(self, files: Sequence[Path], key: str, reason: str) -> Path | None:
        present = [path for path in files if path.exists()]
        if not present:
            return None
        try:
            folder = _new_folder(self.folder / "quarantine", key)
            moved = []
            for path in present:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, folder / path.name)
                    moved.append(path)
            if not moved:
                folder.rmdir()
                return None
        except OSError as error:
            raise store_error("set aside", files[0], error) from error
        atomic_write(folder / "reason.txt", f"{reason}\n".encode())
        log.warning("set aside in %s: %s", folder, reason)
        return folder


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise CorruptRecordError("its arrays are missing", where=path) from error
    except OSError as error:
        raise store_error("read", path, error) from error
    if found != size:
        raise CorruptRecordError(f"its arrays have {found} bytes instead of {size}", where=path)


def _check_digest(path: Path, digest: str) -> None:
    try:
        found = file_sha256(path)
    except FileNotFoundError as error:
        raise CorruptRecordError("its arrays are missing", where=path) from error
    except OSError as error:
        raise store_error("read", path, error) from error
    if found != digest:
        raise CorruptRecordError("the arrays' checksum is wrong", where=path)


def _new_folder(parent: Path, name: str) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{name[:16]}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise store_error("remove", path, error) from error


def _normalised(record: EvaluationRecord) -> EvaluationRecord:
    """The record with every undefined number None, as JSON has no NaN."""
    plain = _without_nan(record.model_dump(mode="json"))
    classes = plain["class_robust_acc"]
    plain["class_robust_acc"] = {k: v for k, v in classes.items() if v is not None}
    try:
        return EvaluationRecord.model_validate(plain)
    except ValidationError as error:
        raise StoreError(f"the record is invalid: {_first(error)}", where=record.key) from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return value


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg']}"


def _render(record: EvaluationRecord, files: Mapping[str, Any]) -> bytes:
    document = {
        "format": _FORMAT,
        "record": record.model_dump(mode="json"),
        "files": dict(files),
    }
    document["checksum"] = canonical_hash(document)
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
