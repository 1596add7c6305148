"""A record's JSON: the record, the names and checksums of its files, and its own checksum."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robench.errors import CorruptRecordError, StoreError
from robench.files import file_error
from robench.records import EvaluationRecord, canonical_hash
from robench.results.migrations import migrate

__all__ = ["first_problem", "parse_record", "read_document", "render_document"]

_FORMAT = "robench-record"


def render_document(record: EvaluationRecord, files: Mapping[str, Any]) -> bytes:
    """The JSON of a record; the same content always gives the same bytes."""
    document = {
        "format": _FORMAT,
        "record": record.model_dump(mode="json"),
        "files": dict(files),
    }
    document["checksum"] = canonical_hash(document)
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_document(path: Path, key: str) -> dict[str, Any]:
    """The JSON of ``key`` as plain data: ``record`` and ``files``, checksum verified.

    Raises:
        StoreError: there is none, or it cannot be read.
        CorruptRecordError: it is damaged, or another key's.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise StoreError("there is no such record", where=path) from error
    except OSError as error:
        raise file_error("read", path, error) from error
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


def parse_record(plain: dict[str, Any], path: Path) -> EvaluationRecord:
    """A document's ``record``, migrated if it is old.

    Raises:
        StoreError: its schema version is unknown.
        CorruptRecordError: it does not follow the schema.
    """
    try:
        return EvaluationRecord.model_validate(migrate(plain))
    except StoreError as error:
        raise type(error)(error.what, where=path, hint=error.hint) from error
    except ValidationError as error:
        raise CorruptRecordError(
            f"the record is invalid: {first_problem(error)}", where=path
        ) from (error)


def first_problem(error: ValidationError) -> str:
    """Field and reason of a validation error's first entry, in one line."""
    detail = error.errors()[0]
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg']}"
