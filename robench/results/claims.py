"""Claims on jobs: several processes work on one folder, and no job is done twice.

A claim is a lock that the operating system holds for an open file, so it expires the moment its
process dies, however it dies: no time-outs, no stale process ids. A note beside it only tells
people who holds it. On a file system shared by several machines the lock reaches as far as that
file system's locks do (NFS version 4 and the usual cluster file systems: everywhere). Where a file
system has no locks, claims always succeed, and one process at a time should work on a folder.
"""

import contextlib
import errno
import json
import os
import platform
import time
from pathlib import Path

from filelock import FileLock, Timeout

from robench.errors import StoreError
from robench.files import file_error, read_text

_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.EINVAL, errno.ENOSYS)


class Claim(contextlib.AbstractContextManager["Claim"]):
    """A held lock. Leaving its block releases the claim; ``held`` says whether it still is.

    Missing parent folders of the lock file are made. ``wait`` is how many seconds to wait for
    another holder; infinity: for ever.

    Raises:
        StoreError: somebody else still holds it after that time; they are named. Or the lock file
            cannot be written.
    """

    def __init__(self, path: Path, wait: float = 0.0) -> None:
        self.path = path
        self._note = path.with_suffix(".json")
        # Threads share it: whoever ends the job may release it.
        self._lock = FileLock(path, thread_local=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # filelock's word for a file system without locks, as are the errors below.
            with contextlib.suppress(NotImplementedError):
                self._lock.acquire(timeout=wait if wait < float("inf") else -1, poll_interval=0.02)
        except Timeout as error:
            raise StoreError(
                f"another process is working on this ({self._holder()})",
                where=path,
                hint="Wait for it, or end it: its claim expires with it",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise file_error("claimed", path, error) from error
        self.held = True
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        owner = {"pid": os.getpid(), "host": platform.node(), "since": now}
        with contextlib.suppress(OSError):
            self._note.write_text(json.dumps(owner))

    def release(self) -> None:
        """Give the claim up; doing so twice does no harm."""
        if not self.held:
            return
        self.held = False
        # Removed while still locked: whoever waits for the removed file notices, and opens a new
        # one. Windows does not remove an open file; there filelock does so afterwards.
        for path in (self._note, self.path):
            with contextlib.suppress(OSError):
                path.unlink()
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _holder(self) -> str:
        try:
            owner = json.loads(read_text(self._note))
            return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            # It may have released the claim since.
            return "holder unknown"
