"""Claims on jobs: several processes work on one folder, and no job is done twice.

A claim is a lock that the kernel holds for an open file (``flock``), so it expires the moment
its process dies, however it dies: no time-outs, no stale process ids, no clean-up. The file's
content only tells people who holds it. On a file system shared by several machines the lock
reaches as far as that file system's ``flock`` does (NFS version 4 and the usual cluster file
systems: everywhere). Where the operating system has no ``flock``, claims always succeed, and
one process at a time should work on a folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import time
from pathlib import Path
from types import TracebackType

from robench.errors import StoreError
from robench.files import file_error

try:
    import fcntl
except ImportError:  # pragma: no cover - not on POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = ["Claim", "holder_of", "try_claim", "wait_for_claim"]

_UNSUPPORTED = (errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS)


class Claim:
    """A held lock. A context manager: leaving it releases the claim."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor: int | None = descriptor

    @property
    def held(self) -> bool:
        """Whether the claim has not been released yet."""
        return self._descriptor is not None

    def release(self) -> None:
        """Give the claim up; doing so twice does no harm."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        # Removed while still locked: whoever opened the same file meanwhile sees, once it gets
        # the lock, that its file has no name any more, and opens again.
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(descriptor)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def try_claim(path: Path) -> Claim | None:
    """Take the claim whose lock file is ``path``; None if somebody else holds it.

    Raises:
        StoreError: the lock file cannot be written.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise file_error("claimed", path, error) from error
        try:
            if not _lock(descriptor):
                os.close(descriptor)
                return None
            if _is_named(descriptor, path):
                owner = {"pid": os.getpid(), "host": platform.node(), "since": _utc_now()}
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(owner).encode())
                return Claim(path, descriptor)
            os.close(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise file_error("claimed", path, error) from error


def wait_for_claim(path: Path, timeout: float, *, poll: float = 0.01) -> Claim:
    """Take the claim, waiting up to ``timeout`` seconds for its holder to finish.

    Raises:
        StoreError: it is still held after that time; the holder is named.
    """
    deadline = time.monotonic() + timeout
    while True:
        claim = try_claim(path)
        if claim is not None:
            return claim
        if time.monotonic() >= deadline:
            raise StoreError(
                f"another process is working on this ({holder_of(path)})",
                where=path,
                hint="Wait for it, or end it: its claim expires with it",
            )
        time.sleep(min(poll, 0.5))
        poll *= 1.5


def holder_of(path: Path) -> str:
    """Who wrote the lock file, for a message; it may have released the claim since."""
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "holder unknown"


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _lock(descriptor: int) -> bool:
    if fcntl is None:  # pragma: no cover - not on POSIX
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks: work goes on, unprotected, as the module says.
        if error.errno not in _UNSUPPORTED:
            raise
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
