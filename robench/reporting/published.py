"""What a results folder's leaderboard, tables, figures and page were made of: what would come out the
same is not made again, and nothing of it is read. Loads no pandas and no schemas."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from robench.files import atomic_write, file_sha256, read_bytes, read_text
from robench.metric_catalogue import METRICS, Metric
from robench.registry import identity_of, installed_versions
from robench.reporting.board import Board
from robench.reporting.catalogue import Report, reports
from robench.text import visible

NAME = "published.json"

_LIBRARIES = ("jinja2", "matplotlib", "numpy", "pandas", "pyarrow", "pydantic", "scipy")

_CODE = (".py", ".j2", ".css", ".js", ".toml")
"""What decides how something looks, styles and scripts of the page too"""

_WHOLE = (".json", ".parquet")
"""Files of a record that are read whole; of the others, which may be large, size and time are looked at"""


@dataclass(frozen=True)
class Publication:
    """What people read of a results folder: its files, the CSV first, and the leaderboard in short."""

    files: list[Path]
    board: Board


class Published:
    """What was published in a ``folder``, of its records, bounds, validations and clean samples and of
    the files of ``cards``, by this code; a file beside it remembers it.

    Made before anything of it is read, so that what somebody writes meanwhile is not passed over.
    """

    def __init__(self, folder: Path, cards: Iterable[Path] = ()) -> None:
        self._folder, self._cards = folder, list(cards)
        self._made_of = self._digest()

    def find(self, *, plots: bool = True) -> Publication | None:
        """What was made of just this and is still as it was, without ``plots`` the tables of it; None: it
        has to be made."""
        try:
            told = json.loads(read_text(self._folder / NAME))
            whole = told.pop("checksum") == _checksum(told)
            files = {self._folder / name: str(digest) for name, digest in told["files"].items()}
            board = Board(**told["board"])
            same = (
                whole
                and told["made_of"] == self._made_of is not None
                and _is_shown_as_it_is(board)
                and all(
                    path.resolve().is_relative_to(self._folder.resolve())
                    and path.is_file()  # a pipe would be waited for
                    and file_sha256(path) == digest
                    for path, digest in files.items()
                )
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None  # not there, not ours, or of files that are gone
        shown = [path for path in files if plots or path.suffix == ".csv"]
        return Publication(shown, board) if same else None

    def remember(self, publication: Publication) -> None:
        """It has just been made of what there was, unless that has changed since.

        Raises:
            StoreError: that cannot be written.
        """
        if self._made_of is None or self._digest() != self._made_of:
            return
        files = {
            path.relative_to(self._folder).as_posix(): file_sha256(path)
            for path in publication.files
        }
        told = {"made_of": self._made_of, "files": files, "board": asdict(publication.board)}
        content = json.dumps(told | {"checksum": _checksum(told)}, indent=1)
        atomic_write(self._folder / NAME, content.encode())

    def _digest(self) -> str | None:
        digest = hashlib.sha256()
        try:
            for name, content in self._parts():
                digest.update(f"{name}\0{len(content)}\0".encode() + content)
        except OSError:
            return None
        return digest.hexdigest()

    def _parts(self) -> Iterator[tuple[str, bytes]]:
        """All that decides what comes out, by name."""
        yield "with", repr((sys.version, installed_versions(*_LIBRARIES), _from_outside())).encode()
        yield "code", _code(Path(__file__).parents[1]).encode()
        for path in self._cards:
            yield "/".join(path.parts[-4:]), read_bytes(path)
        for pattern in ("bounds/*.json", "validations/*.json", "samples/*.npz"):
            for path in sorted(self._folder.glob(pattern)):
                yield path.relative_to(self._folder).as_posix(), read_bytes(path)
        for path in sorted(self._folder.glob("records/??/[!.]*")):
            yield path.name, read_bytes(path) if path.suffix in _WHOLE else _state(path)


@cache
def _code(package: Path) -> str:
    """SHA-256 of the code, which this process has loaded and stays with.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(package):
        folders[:] = sorted(set(folders) - {"__pycache__"})
        for name in sorted(names):
            if name.endswith(_CODE):
                content = Path(folder, name).read_bytes()
                place = os.path.relpath(folder, package)
                digest.update(f"{place}/{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _state(path: Path) -> bytes:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}".encode()


def _from_outside() -> list[str]:
    """What reports and metrics from outside robench are, by their source."""
    made: list[tuple[str, object, Report | Metric]] = [
        (name, report.make, report)
        for kind in ("table", "figure")
        for name, report in reports(kind).items()
    ]
    made += [(name, metric.compute, metric) for name, metric in METRICS.metrics.items()]
    return [
        f"{name} {identity_of(item.function)}"
        for name, target, item in made
        if not (isinstance(target, str) and target.startswith("robench."))
    ]


def _is_shown_as_it_is(board: Board) -> bool:
    """Whether it is what it should be, and has nothing that a terminal would obey."""
    lines = board.text.split("\n")
    return isinstance(board.content, dict) and [visible(line) for line in lines] == lines


def _checksum(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
