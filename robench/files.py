"""Files: whole or absent, hashed, and where robench keeps what it fetches. Imports no torch.

A file is written under a temporary name in the folder where it will live, flushed to the disk,
and renamed; then the folder itself is flushed, because a rename that only the cache knows does
not survive a power cut. The price is two flushes a file, some milliseconds on a disk: robench
writes a file once a job, so safety is worth more than speed here.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs

from robench.errors import StoreError

_TEMPORARY_SUFFIX = ".tmp"

_LONGEST_TEXT = 2**24

_LONGEST_DOCUMENT = 2**28

_HINTS = {
    errno.ENOSPC: "Free some space or choose another folder; the same command then goes on",
    errno.EDQUOT: "Your quota is used up: free some space or choose another folder",
    errno.EROFS: "The file system is read-only: choose another folder",
    errno.EACCES: "Check the folder's permissions or choose another folder",
    errno.EPERM: "Check the folder's permissions or choose another folder",
    errno.ENOTDIR: "A file stands where a folder is needed: choose another folder",
    errno.EEXIST: "A file stands where a folder is needed: choose another folder",
}


def file_error(action: str, path: Path, error: OSError) -> StoreError:
    """The one-line error for an ``OSError``: ``path`` cannot be ``action`` (written, read, …)."""
    reason = error.strerror or str(error)
    hint = _HINTS.get(error.errno or 0)
    return StoreError(f"cannot be {action}: {reason}", where=path, hint=hint)


@contextlib.contextmanager
def file_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into :func:`file_error`."""
    try:
        yield
    except OSError as error:
        raise file_error(action, path, error) from error


def remove(path: Path) -> None:
    """Delete a file; one that is not there is as good.

    Raises:
        StoreError: it cannot be removed.
    """
    with file_errors("removed", path):
        path.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Put ``content`` at ``path`` so that a reader sees all of it or none of it.

    Args:
        path: the final place; missing parent folders are made.
        content: the bytes, or a function that writes them to the open file it is given.

    Raises:
        StoreError: the disk is full, the folder cannot be written, or similar. Whatever was at
            ``path`` before is still there, and no temporary file is left. What else ``content``
            raises comes out as it is.
    """
    temporary = (
        path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    )
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
        raise file_error("written", path, error) from error


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


def ensure_writable(folder: Path, option: str | None = None) -> None:
    """Refuse a folder that could not be written, without writing anything: better before a long
    job than after it.

    It need not be there yet. The hint names the ``option`` (``--results``) that chose it.

    Raises:
        StoreError: it is a file, below a file, or not writable.
    """
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    other = "choose another folder" + (f" with {option}" if option else "")
    if not place.is_dir():
        raise StoreError(
            f"cannot be written: {place} is no folder", where=folder, hint=other.capitalize()
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise StoreError(
            f"cannot be written: no permission to write in {place}",
            where=folder,
            hint=f"Check its permissions, or {other}",
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal digits; the file is never in memory whole.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path that somebody wrote, with their home for ``~``; that of nobody stays as it is.

    What stands there is asked with ``os.path.isfile`` and its like, for which a path that no system
    takes, or that may not be looked at, is one where nothing is.
    """
    return Path(os.path.expanduser(path))


def check_regular(path: Path) -> None:
    """Refuse what is there and no file. A pipe or a device may never end, or never begin.

    Raises:
        OSError: it is a folder, a pipe, a socket or a device.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{'a folder' if os.path.isdir(path) else 'a pipe or a device'}, not a file")


def read_bytes(path: Path, most: int = _LONGEST_DOCUMENT) -> bytes:
    """The bytes of a file that is read whole: a record, a list, a leaderboard.

    Args:
        path: the file.
        most: what no such file is larger than.

    Raises:
        OSError, ValueError: it cannot be read, is no regular file, or is larger.
    """
    check_regular(path)
    with path.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(f"more than {most:,} bytes")
    return content


def read_text(path: Path) -> str:
    """The text of a card, a suite or a policy, line ends as they stand; errors as of
    :func:`read_bytes`, and ValueError where it is no UTF-8."""
    return read_bytes(path, _LONGEST_TEXT).decode()


def stale_temporaries(folder: Path, *, older_than: float = 3600.0) -> Iterator[Path]:
    """Temporary files below ``folder`` that a killed process left ``older_than`` seconds ago."""
    limit = time.time() - older_than
    for path in sorted(folder.rglob(f".*{_TEMPORARY_SUFFIX}")):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime <= limit:
                yield path


def cache_folder() -> Path:
    """Where robench keeps what it fetches: the folder that the environment variable
    ``ROBENCH_CACHE`` names, else ``robench`` in the user's cache folder (``XDG_CACHE_HOME`` or
    ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS)."""
    return _named("ROBENCH_CACHE") or platformdirs.user_cache_path("robench", appauthor=False)


def config_folder() -> Path:
    """Where the user's own settings are: ``robench`` in the user's configuration folder
    (``XDG_CONFIG_HOME`` or ``~/.config`` on Linux, ``~/Library/Application Support`` on macOS)."""
    return platformdirs.user_config_path("robench", appauthor=False)


def data_folder(root: Path | None = None) -> Path:
    """Where data sets are: ``root`` where given, else the folder that ``ROBENCH_DATA`` names, else
    ``data`` in :func:`cache_folder`."""
    if root is not None:
        return expanded(root)
    return _named("ROBENCH_DATA") or cache_folder() / "data"


def _named(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return expanded(value) if value else None
