"""What an unfinished job has done so far.

Opaque bytes, written atomically and checksummed; and, apart from them, arrays by row. The
adversarial inputs of a job outgrow any memory on large data sets. They are not mapped into it
either, so that what a process needs does not grow with the data.
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robench.files import atomic_write, check_regular, file_error, file_errors, remove
from robench.results.traces import TraceParts

_MAGIC = b"robench-progress-1\n"
_HEADER_BYTES = len(_MAGIC) + hashlib.sha256().digest_size


class RowFile:
    """``count`` float32 rows of a shape, in a file that survives the process; a file of another
    size is begun anew, and rows never written are zero.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = (count, *shape)
        self._bytes = 4 * math.prod(shape)
        with file_errors("opened", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as stream:
                self.resumed = stream.tell() == count * self._bytes
                if not self.resumed:
                    stream.truncate(0)
                    stream.truncate(count * self._bytes)

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Iterable[int]) -> NDArray[np.float32]:
        """The rows (k, …), in the order asked for.

        Raises:
            StoreError: they cannot be read.
        """
        chosen = list(rows)
        found = np.empty((len(chosen), *self.shape[1:]), np.float32)
        with file_errors("read", self.path), self.path.open("rb") as stream:
            for place, row in enumerate(chosen):
                stream.seek(self._start(row))
                content = stream.read(self._bytes)
                found[place] = np.frombuffer(content, np.float32).reshape(self.shape[1:])
        return found

    def write(self, rows: Iterable[int], values: NDArray[np.float32]) -> None:
        """Replace rows by ``values`` (k, …).

        Raises:
            StoreError: they cannot be written, as on a full disk.
        """
        with file_errors("written", self.path), self.path.open("r+b") as stream:
            for row, value in zip(rows, values, strict=True):
                stream.seek(self._start(row))
                stream.write(np.ascontiguousarray(value, np.float32).tobytes())

    def _start(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return row * self._bytes


class Progress:
    """One job's saved progress; ``set_aside`` is called with the path and a reason when the file
    is damaged."""

    def __init__(self, path: Path, set_aside: Callable[[Path, str], object]) -> None:
        self.path = path
        self._rows = path.with_suffix(".rows")
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
            check_regular(self.path)
            stored = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise file_error("read", self.path, error) from error
        header, content = stored[:_HEADER_BYTES], stored[_HEADER_BYTES:]
        if header != _MAGIC + hashlib.sha256(content).digest():
            self._set_aside(self.path, "saved progress is damaged: its checksum is wrong")
            return None
        return content

    def row_file(self, count: int, shape: tuple[int, ...]) -> RowFile:
        """Arrays too large to be saved over and over: float32 rows that are kept as written.
        Errors as of :class:`RowFile`."""
        return RowFile(self._rows, count, shape)

    def trace(self) -> TraceParts:
        """What searches have seen so far."""
        return TraceParts(self.path)

    def clear(self) -> None:
        """Forget it: the job is done, or starts over.

        Raises:
            StoreError: the files cannot be removed.
        """
        remove(self.path)
        remove(self._rows)
        self.trace().clear()
