"""One schema's content as a JSON file of its own: whole or not at all, with a checksum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel

from robench.errors import CorruptRecordError, one_line
from robench.files import atomic_write, file_error, read_bytes
from robench.records import canonical_hash, parse

M = TypeVar("M", bound=BaseModel)


class Keyed(Protocol):
    """What is kept under its key."""

    @property
    def key(self) -> str:
        """64 hexadecimal digits."""

    def model_dump(self, *, mode: str) -> dict[str, object]:
        """Plain data."""


def write_document(folder: Path, kind: str, content: Keyed) -> Path:
    """Write ``content`` into the folder, by its key.

    Raises:
        StoreError: it cannot be written.
    """
    document: dict[str, object] = {"format": f"robench-{kind}"}
    document[kind] = content.model_dump(mode="json")
    document["checksum"] = canonical_hash(document)
    path = folder / f"{content.key}.json"
    atomic_write(
        path, (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    )
    return path


def read_document_of(schema: type[M], path: Path, kind: str) -> M:
    """What :func:`write_document` wrote: checksum, schema and key verified.

    Raises:
        StoreError: it cannot be read.
        CorruptRecordError: it is damaged, or does not follow the schema.
    """
    try:
        document = json.loads(read_bytes(path))
    except OSError as error:
        raise file_error("read", path, error) from error
    except (ValueError, RecursionError) as error:
        raise CorruptRecordError(f"no JSON: {one_line(error)}", where=path) from error
    if not isinstance(document, dict) or document.get("format") != f"robench-{kind}":
        raise CorruptRecordError(f"no {kind} of robench's", where=path)
    if document.pop("checksum", None) != canonical_hash(document):
        raise CorruptRecordError("its checksum is wrong", where=path)
    found = parse(schema, document.get(kind), CorruptRecordError, where=path)
    if getattr(found, "key", None) != path.stem:
        raise CorruptRecordError("its key is not its file's name", where=path)
    return found
