"""What an unfinished job has done so far: opaque bytes, written atomically, checksummed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from robench.files import atomic_write, file_error
from robench.results.row_file import RowFile

__all__ = ["Progress"]

_MAGIC = b"robench-progress-1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


class Progress:
    """One job's saved progress.

    Args:
        path: where it is kept.
        set_aside: called with the path and a reason when the file is damaged.
    """

    def __init__(self, path: Path, set_aside: Callable[[Path, str], object]) -> None:
        self.path = path
        self._set_aside = set_aside

    def save(self, content: bytes) -> None:
        """Replace what was saved; an interruption keeps the one before.

        Raises:
            StoreError: it cannot be written.
        """
        header = _MAGIC + hashlib.sha256(content).digest()
        # In two parts: joined they would be a second copy of what may fill half the memory.
        atomic_write(self.path, lambda stream: stream.writelines((header, content)))

    def load(self) -> bytes | None:
        """What was saved last; None if nothing was.

        A damaged file (a flipped bit, a truncation) is set aside and counts as nothing: the job
        starts again rather than from a wrong state.

        Raises:
            StoreError: the file is there but cannot be read.
        """
        try:
            stored = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise file_error("read", self.path, error) from error
        start = len(_MAGIC) + _DIGEST_BYTES
        digest, content = stored[len(_MAGIC) : start], stored[start:]
        if not stored.startswith(_MAGIC) or hashlib.sha256(content).digest() != digest:
            self._set_aside(self.path, "saved progress is damaged: its checksum is wrong")
            return None
        return content

    def row_file(self, count: int, shape: tuple[int, ...]) -> RowFile:
        """Arrays too large to be saved over and over: float32 rows that are kept as written.

        Raises:
            StoreError: the file cannot be opened.
        """
        return RowFile(self._rows, count, shape)

    def clear(self) -> None:
        """Forget it: the job is done, or starts over.

        Raises:
            StoreError: the files cannot be removed.
        """
        for path in (self.path, self._rows):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise file_error("removed", path, error) from error

    @property
    def _rows(self) -> Path:
        return self.path.with_suffix(".rows")
