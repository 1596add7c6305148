"""Files that are either complete or absent.

A file is written under a temporary name in the folder where it will live, flushed to the disk,
and renamed; then the folder itself is flushed, because a rename that only the cache knows does
not survive a power cut. The price is two flushes a file, some milliseconds on a disk: records
are written once a job, so safety is worth more than speed here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from robench.errors import StoreError

__all__ = ["TEMPORARY_SUFFIX", "atomic_write", "file_sha256", "stale_temporaries", "store_error"]

TEMPORARY_SUFFIX = ".tmp"

_HINTS = {
    errno.ENOSPC: "Free some space or choose another results folder; the same command then goes on",
    errno.EDQUOT: "Your quota is used up: free some space or choose another results folder",
    errno.EROFS: "The file system is read-only: choose another results folder",
    errno.EACCES: "Check the folder's permissions or choose another results folder",
    errno.EPERM: "Check the folder's permissions or choose another results folder",
    errno.ENOTDIR: "A file stands where a folder is needed: choose another results folder",
    errno.EEXIST: "A file stands where a folder is needed: choose another results folder",
}


def store_error(action: str, path: Path, error: OSError) -> StoreError:
    """The one-line error for an ``OSError`` met while doing ``action`` to ``path``."""
    reason = error.strerror or str(error)
    hint = _HINTS.get(error.errno or 0)
    return StoreError(f"cannot {action}: {reason}", where=path, hint=hint)


def atomic_write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Put ``content`` at ``path`` so that a reader sees all of it or none of it.

    Args:
        path: the final place; missing parent folders are made.
        content: the bytes, or a function that writes them to the open file it is given.

    Raises:
        StoreError: the disk is full, the folder cannot be written, or similar. Whatever was at
            ``path`` before is still there, and no temporary file is left.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    content(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            # Also on Ctrl-C: nothing half-written stays behind.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise store_error("write", path, error) from error


def _flush_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        # Not every system opens a folder (Windows does not); the rename has happened anyway.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to flush a folder: that is no failure of the write.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def file_sha256(path: Path, chunk: int = 1 << 20) -> str:
    """SHA-256 of a file's bytes, read ``chunk`` bytes at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(chunk):
            digest.update(block)
    return digest.hexdigest()


def stale_temporaries(folder: Path, *, older_than: float = 3600.0) -> Iterator[Path]:
    """Temporary files below ``folder`` that a killed process left ``older_than`` seconds ago."""
    limit = time.time() - older_than
    for path in sorted(folder.rglob(f".*{TEMPORARY_SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= limit:
                yield path
