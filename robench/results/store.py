"""The results folder: one JSON and one table for each evaluated job, named by its key.

::

    records/ab/abcd….json              the record, the names and checksums of its files
    records/ab/abcd….<digest>.parquet  one row a sample
    records/ab/abcd….<digest>.npz      arrays on request: adversarial inputs, maps
    records/ab/abcd….<digest>.trace    what searches saw at each step, on request (Parquet)
    progress/abcd….bin, .rows, .trace… an unfinished job
    claims/abcd….lock, .json           who works on a job now
    validations/abcd….json             what a number is worth (:mod:`robench.results.validations`)
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
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from robench.errors import CorruptRecordError, StoreError, UsageError
from robench.files import (
    atomic_write,
    file_error,
    file_errors,
    read_bytes,
    remove,
    stale_temporaries,
)
from robench.records import EvaluationRecord, SampleOutcome
from robench.results import arrays as npz
from robench.results.claims import Claim
from robench.results.consistency import check_consistency
from robench.results.progress import Progress
from robench.results.stored_record import (
    StoredRecord,
    parse_record,
    read_document,
    render_document,
    write_data_file,
)
from robench.results.tables import parquet_bytes, table_from_parquet

log = logging.getLogger("robench.results")

_KEY = re.compile(r"[0-9a-f]{64}")
_READ_ATTEMPTS = 5


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

    @classmethod
    def existing(cls, folder: str | os.PathLike[str]) -> Store:
        """The store in a folder that is there.

        Raises:
            StoreError: there is no such folder; an empty leaderboard would hide a typing error.
        """
        if not Path(folder).is_dir():
            raise StoreError(
                "there is no such results folder",
                where=folder,
                hint="Name it with --results; `robench run` makes one",
            )
        return cls(folder)

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
        samples: Collection[SampleOutcome],
        *,
        adversarial: npz.Array | npz.Rows | None = None,
        arrays: Mapping[str, npz.Array] | None = None,
        trace: Callable[[BinaryIO], object] | None = None,
    ) -> StoredRecord:
        """Keep a finished job, in place of an earlier record with its key.

        Args:
            record: its ``counts`` must agree with the samples. Undefined (NaN) figures become
                None; classes without a defined accuracy are left out.
            samples: one a row, in any order, ids distinct.
            adversarial: inputs in the order of ``samples``, shape (n, C, H, W), in [0, 1]; as
                :class:`~robench.results.arrays.Rows` they are made while they are written.
            arrays: further arrays under their names (clean inputs, attention maps).
            trace: writes what :func:`robench.results.traces.read_trace` reads.

        Raises:
            StoreError: the record and its rows contradict each other, or the folder cannot be
                written (full, read-only): then nothing of it is left behind.
        """
        stored = StoredRecord.of(record, samples)
        extra: dict[str, npz.Array | npz.Rows] = dict(arrays or {})
        if adversarial is not None:
            if adversarial.shape[0] != len(samples):
                raise StoreError(
                    f"{adversarial.shape[0]} adversarial inputs for {len(samples)} samples",
                    where=record.key,
                )
            extra[npz.ADVERSARIAL] = adversarial
        path = self.path_of(record.key)
        created: list[Path] = []
        try:
            table = parquet_bytes(stored.arrow)
            files = {"table": write_data_file(path, ".parquet", table, created)}
            if extra:
                # Too large to render in memory.
                save = functools.partial(npz.save_arrays, arrays=extra)
                files["arrays"] = write_data_file(path, ".npz", save, created)
            if trace is not None:
                files["trace"] = write_data_file(path, ".trace", trace, created)
            atomic_write(path, render_document(stored.record, files))
        except BaseException:
            for orphan in created:
                with contextlib.suppress(StoreError):
                    remove(orphan)
            raise
        places = {name: path.parent / entry["name"] for name, entry in files.items()}
        arrays_path, trace_path = places.get("arrays"), places.get("trace")
        return StoredRecord(stored.record, stored.arrow, path, arrays_path, trace_path)

    def read(self, key: str) -> StoredRecord:
        """The record of ``key``, its checksums and schema verified.

        Of its arrays, which may be large, only the size is looked at; :meth:`verify` and
        :meth:`read_arrays` look at their checksum.

        Raises:
            StoreError: there is none, it cannot be read, or its schema version is another.
            CorruptRecordError: it is damaged; :meth:`set_aside` moves it out of the way.
        """
        path = self.path_of(key)
        for attempt in range(_READ_ATTEMPTS):
            document = read_document(path, key)
            table_path = path.parent / document["files"]["table"]["name"]
            try:
                content = read_bytes(table_path)
                break
            except FileNotFoundError as error:
                # Somebody may have written the record anew and pruned the old table.
                if attempt + 1 == _READ_ATTEMPTS:
                    raise CorruptRecordError("its table is missing", where=table_path) from error
                time.sleep(0.01 * attempt)
            except OSError as error:
                raise file_error("read", table_path, error) from error
        if hashlib.sha256(content).hexdigest() != document["files"]["table"]["sha256"]:
            raise CorruptRecordError("the table's checksum is wrong", where=table_path)
        arrow = table_from_parquet(content)
        large = {}
        for kind, entry in document["files"].items():
            if kind != "table":
                large[kind] = path.parent / entry["name"]
                npz.check_size(large[kind], entry["bytes"])
        record = parse_record(document["record"], path)
        stored = StoredRecord(record, arrow, path, large.get("arrays"), large.get("trace"))
        check_consistency(stored)
        return stored

    def verify(self, key: str) -> None:
        """Read all files of a record and compare every checksum; errors as of :meth:`read`."""
        self.read(key)
        for kind in ("arrays", "trace"):
            path, digest = self._file(key, kind)
            if path is not None:
                npz.check_digest(path, digest)

    def scan(self) -> Scan:
        """Read every record, setting apart those that cannot be read."""
        problems: list[Problem] = []
        return Scan(tuple(self._sound(problems.append)), tuple(problems))

    def records(self) -> Iterator[StoredRecord]:
        """Every sound record, in order of keys; the others are logged as warnings."""
        return self._sound(lambda problem: log.warning("left out: %s", problem.error))

    def keys_naming(self, *texts: str) -> list[str]:
        """The keys of records whose JSON holds all these texts, such as fingerprints. It is not parsed:
        that takes far longer, and most records are of something else."""
        wanted, found = [text.encode() for text in texts], []
        for key in self.keys():
            with contextlib.suppress(OSError):
                content = read_bytes(self.path_of(key))
                found += [key] if all(text in content for text in wanted) else []
        return found

    def delete(self, key: str) -> None:
        """Remove a record and its files.

        Raises:
            StoreError: they cannot be removed.
        """
        path = self.path_of(key)
        # The JSON first: without it the rest is no record any more.
        for victim in [path, *sorted(path.parent.glob(f"{key}.*.*"))]:
            remove(victim)

    # --- arrays ----------------------------------------------------------------------------

    def read_arrays(self, key: str) -> dict[str, npz.Array]:
        """The arrays kept with a record, by name, without its adversarial inputs.

        The file's checksum is verified; errors as of :meth:`read`.
        """
        path, digest = self._file(key, "arrays")
        return {} if path is None else npz.load_arrays(path, digest, leave_out=(npz.ADVERSARIAL,))

    def has_adversarial(self, key: str) -> bool:
        """Whether a record's adversarial inputs were kept; no checksum is looked at.

        Errors as of :meth:`read`.
        """
        path, _ = self._file(key, "arrays")
        return path is not None and npz.ADVERSARIAL in npz.array_names(path)

    def has_trace(self, key: str) -> bool:
        """Whether what a record's searches saw was kept; errors as of :meth:`read`."""
        return self._file(key, "trace")[0] is not None

    def adversarial_rows(self, key: str) -> npz.ArrayRows:
        """Adversarial inputs (n, C, H, W), to be read some rows at a time, in the table's order.

        Raises:
            StoreError: they were not kept; otherwise as :meth:`read_arrays`.
        """
        path, digest = self._file(key, "arrays")
        if path is not None:
            npz.check_digest(path, digest)
        if path is None or npz.ADVERSARIAL not in npz.array_names(path):
            raise StoreError(
                "the record has no adversarial inputs",
                where=self.path_of(key),
                hint="Run it again with --save-adversarial",
            )
        return npz.ArrayRows(path, npz.ADVERSARIAL)

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
        return self.quarantine(files, key, reason)

    def quarantine(self, files: Sequence[Path], key: str, reason: str) -> Path | None:
        """Move damaged ``files`` out of the way, with the reason, into a new folder that is returned;
        None if another process was quicker.

        Raises:
            StoreError: they cannot be moved.
        """
        if not any(path.exists() for path in files):
            return None
        # By the moment: a key may be damaged more than once.
        folder = self.folder / "quarantine" / f"{key[:16]}-{time.time_ns()}"
        with file_errors("set aside", files[0]):
            folder.mkdir(parents=True)
            for path in files:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, folder / path.name)
            if not any(folder.iterdir()):
                folder.rmdir()
                return None
        atomic_write(folder / "reason.txt", f"{reason}\n".encode())
        log.warning("set aside in %s: %s", folder, reason)
        return folder

    def claim(self, key: str, *, wait: float = 0.0) -> Claim:
        """Reserve a job for this process: ``with store.claim(key): …``.

        The claim ends with the block, or with the process, however that ends.

        Raises:
            StoreError: another process still holds it after ``wait`` seconds.
        """
        self.path_of(key)
        return Claim(self.folder / "claims" / f"{key}.lock", wait)

    def progress(self, key: str) -> Progress:
        """Where the unfinished job ``key`` saves what it has done so far."""
        self.path_of(key)
        path = self.folder / "progress" / f"{key}.bin"
        return Progress(path, lambda bad, reason: self.quarantine([bad], key, reason))

    def prune(self, *, older_than: float = 3600.0) -> list[Path]:
        """Delete what crashes and overwriting left: temporary files, tables without a record,
        progress of finished jobs, lock files nobody holds.

        Files younger than ``older_than`` seconds may belong to a process that is writing now. The
        deleted files are returned.
        """
        victims = list(stale_temporaries(self.folder, older_than=older_than))
        limit = time.time() - older_than
        for path in sorted((self.folder / "records").glob("??/[!.]*.*.*")):
            with contextlib.suppress(FileNotFoundError):
                if not self._is_named_by_record(path) and path.stat().st_mtime <= limit:
                    victims.append(path)
        for path in sorted((self.folder / "progress").glob("*.*")):
            if _KEY.fullmatch(path.stem) and self.has(path.stem):
                victims.append(path)
        for path in sorted((self.folder / "claims").glob("*.lock")):
            with contextlib.suppress(StoreError), Claim(path):
                pass
        for path in victims:
            remove(path)
        return victims

    # --- inside ----------------------------------------------------------------------------

    def _sound(self, on_problem: Callable[[Problem], None]) -> Iterator[StoredRecord]:
        for key in self.keys():
            try:
                yield self.read(key)
            except StoreError as error:
                on_problem(Problem(key, self.path_of(key), error))

    def _file(self, key: str, kind: str) -> tuple[Path | None, str]:
        """A record's ``arrays`` or ``trace`` and their checksum; None if it has none."""
        path = self.path_of(key)
        entry = read_document(path, key)["files"].get(kind)
        return (None, "") if entry is None else (path.parent / entry["name"], entry["sha256"])

    def _is_named_by_record(self, path: Path) -> bool:
        json_path = path.parent / f"{path.name.partition('.')[0]}.json"
        try:
            files = json.loads(read_bytes(json_path))["files"]
            return path.name in {entry["name"] for entry in files.values()}
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            # A damaged JSON may well have named it.
            return True
