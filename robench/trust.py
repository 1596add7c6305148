"""Whose files may name code to run: what came with robench, and what the user has trusted by name.

A card, a suite or a program in a folder that somebody else made must not run code because it lies
there. ``robench trust PATH`` allows a folder, or one file, once; the list is kept in the user's own
configuration, by real path and with a hash of the content, so that a file that changes, comes or
goes ends the trust. What is not on the list is read and shown, never imported. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robench.errors import StoreError, UsageError
from robench.files import (
    atomic_write,
    config_folder,
    expanded,
    file_errors,
    file_sha256,
    read_text,
)

_UNHASHED = (".git", "__pycache__")
"""Folders that change without anybody's wish. Nothing below them is ever trusted."""


@dataclass(frozen=True)
class Trusted:
    """A path that the user has trusted, and what has become of it since."""

    path: Path
    state: Literal["trusted", "changed", "gone"]


def is_trusted(path: Path) -> bool:
    """Whether the user has trusted a file, or a folder that it lies in, and nothing has changed.

    Raises:
        StoreError: the list of what is trusted, or the folder itself, cannot be read.
    """
    real = path.resolve()
    return any(
        real.is_relative_to(place)
        and not set(_UNHASHED).intersection(real.relative_to(place).parts)
        and _state(place, digest) == "trusted"
        for place, digest in _listed().items()
    )


def trust(path: Path) -> Path:
    """Trust a folder or file as it is now; returns its real path.

    Raises:
        UsageError: there is no such folder or file.
        StoreError: it cannot be read, or the list cannot be written.
    """
    real = expanded(path).resolve()
    if not (real.is_dir() or real.is_file()):
        raise UsageError("there is no such folder or file", where=path)
    _write({**_listed(), real: _digest(real)})
    return real


def revoke(path: Path) -> Path:
    """Trust a folder or file no longer; returns its real path.

    Raises:
        UsageError: it was not trusted.
        StoreError: the list cannot be read or written.
    """
    real, listed = expanded(path).resolve(), _listed()
    if real not in listed:
        raise UsageError(
            "is not trusted", where=path, hint="`robench trust --list` shows what is trusted"
        )
    _write({place: digest for place, digest in listed.items() if place != real})
    return real


def trusted_paths() -> list[Trusted]:
    """All that the user has trusted, by path; errors as of :func:`is_trusted`."""
    return [Trusted(place, _state(place, digest)) for place, digest in sorted(_listed().items())]


def how_to_trust(path: Path | None = None) -> str:
    """The hint beside every refusal to run code; ``path`` is what names it."""
    once = "say --trust-code (trust_code=True in Python)"
    if path is None:
        return f"If you trust its author, {once}"
    real = shlex.quote(str(path.resolve()))
    return f"If you trust its author, `robench trust {real}`, or {once} this once"


def _list_path() -> Path:
    return config_folder() / "trusted.json"


def _listed() -> dict[Path, str]:
    """Real path → hash of its content."""
    path = _list_path()
    try:
        content = json.loads(read_text(path))
        return {Path(str(place)): str(digest) for place, digest in content["trusted"].items()}
    except FileNotFoundError:
        return {}
    except Exception as error:  # Whatever is wrong with it, nothing in it can be relied on.
        raise StoreError(
            f"the list of what is trusted cannot be read: {type(error).__name__}",
            where=path,
            hint="Remove it, and trust your folders again",
        ) from error


def _write(listed: dict[Path, str]) -> None:
    content = {"trusted": {str(place): digest for place, digest in sorted(listed.items())}}
    atomic_write(_list_path(), (json.dumps(content, indent=1) + "\n").encode())


def _state(place: Path, digest: str) -> Literal["trusted", "changed", "gone"]:
    # A link that was put in its place leads elsewhere.
    if not place.exists() or place.resolve() != place:
        return "gone"
    return "trusted" if _digest(place) == digest else "changed"


def _digest(place: Path) -> str:
    """SHA-256 over the names and contents of all files; of a link, over where it leads."""
    digest = hashlib.sha256()
    with file_errors("read", place):
        for path in sorted(_files(place)):
            name = path.relative_to(place).as_posix()
            kind = "link" if path.is_symlink() else "file"
            content = os.readlink(path) if path.is_symlink() else file_sha256(path)
            digest.update(json.dumps([name, kind, content]).encode())
    return digest.hexdigest()


def _files(place: Path) -> Iterator[Path]:
    """Every file and link below a folder, or the file itself; no link is followed.

    A pipe or a socket would never end to be read, and holds nothing."""
    if not place.is_dir():
        yield from [place] if place.is_file() else []
        return
    for folder, inner, names in os.walk(place, onerror=_refuse):
        paths = [Path(folder, name) for name in (*names, *inner)]
        yield from (path for path in paths if path.is_symlink() or path.is_file())
        inner[:] = [name for name in inner if name not in _UNHASHED]


def _refuse(error: OSError) -> None:
    raise error
