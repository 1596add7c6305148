"""What a results folder's tables, figures and page were made of: what would come out the same is not
made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel

from robench.files import atomic_write, file_sha256, read_bytes, read_text
from robench.registry import identity_of, installed_versions
from robench.reporting.catalogue import reports
from robench.results import Store, StoredRecord

NAME = "published.json"

_LIBRARIES = ("jinja2", "matplotlib", "numpy", "pandas", "pyarrow")


class Published:
    """The files of a folder that were made of certain ``records`` and ``documents`` (bounds,
    validations, cards), and of its clean samples, by this code; a file beside them remembers it.

    Records have to be those that are stored; of others nothing is remembered.
    """

    def __init__(
        self, store: Store, records: Sequence[StoredRecord], documents: Iterable[BaseModel]
    ) -> None:
        self._folder = store.folder
        self._made_of = _digest(records, documents, sorted(self._folder.glob("samples/*.npz")))

    def files(self) -> list[Path] | None:
        """What was made of just this and is still as it was, in order; None: it has to be made."""
        try:
            told = json.loads(read_text(self._folder / NAME))
            files = {self._folder / name: str(digest) for name, digest in told["files"].items()}
            same = told["made_of"] == self._made_of and all(
                path.resolve().is_relative_to(self._folder.resolve())
                and path.is_file()  # a pipe would be waited for
                and file_sha256(path) == digest
                for path, digest in files.items()
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None  # not there, not ours, or of files that are gone
        return list(files) if same and self._made_of is not None else None

    def remember(self, files: Sequence[Path]) -> None:
        """These ``files`` of the folder have just been made of it.

        Raises:
            StoreError: that cannot be written.
        """
        names = {path.relative_to(self._folder).as_posix(): file_sha256(path) for path in files}
        content = json.dumps({"made_of": self._made_of, "files": names}, indent=1)
        atomic_write(self._folder / NAME, content.encode())


def _digest(
    records: Sequence[StoredRecord], documents: Iterable[BaseModel], samples: Iterable[Path]
) -> str | None:
    digest = hashlib.sha256()
    try:
        # A record's JSON has the checksums of its other files.
        parts = [read_bytes(stored.path) for stored in records if stored.path is not None]
        package = Path(__file__).parents[1]
        code = [path for path in package.rglob("*") if path.suffix in _CODE]
        parts += [read_bytes(path) for path in (*sorted(code), *samples)]
    except OSError:
        return None
    outside = [
        f"{name} {identity_of(report.function)}"
        for kind in ("table", "figure")
        for name, report in reports(kind).items()
        if not (isinstance(report.make, str) and report.make.startswith("robench."))
    ]
    parts += [document.model_dump_json().encode() for document in documents]
    parts += [repr((outside, installed_versions(*_LIBRARIES))).encode()]
    for part in parts:
        digest.update(f"{len(part)}\0".encode() + part)
    return None if any(stored.path is None for stored in records) else digest.hexdigest()


_CODE = (".py", ".j2", ".css", ".js", ".toml")
"""What decides how something looks, styles and scripts of the page too"""
