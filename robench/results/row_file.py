"""Many arrays of one shape in a file: read and written by row, never in memory together.

The adversarial inputs of an unfinished job outgrow any memory on large data sets. They are not
mapped into it either, so that what a process needs does not grow with the data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robench.files import file_error

__all__ = ["RowFile"]


class RowFile:
    """float32 rows in a file that survives the process; rows never written are zero.

    Args:
        path: where; a file of another size is begun anew.
        count: number of rows.
        shape: of each row.

    Raises:
        StoreError: it cannot be opened.
    """

    def __init__(self, path: Path, count: int, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = (count, *shape)
        self._bytes = 4 * math.prod(shape)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self.resumed = os.fstat(self._file).st_size == count * self._bytes
            if not self.resumed:
                os.ftruncate(self._file, 0)
                os.ftruncate(self._file, count * self._bytes)
        except OSError as error:
            raise file_error("opened", path, error) from error

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, rows: Iterable[int]) -> NDArray[np.float32]:
        """The rows (k, …), in the order asked for.

        Raises:
            StoreError: they cannot be read.
        """
        chosen = list(rows)
        found = np.empty((len(chosen), *self.shape[1:]), np.float32)
        try:
            for place, row in enumerate(chosen):
                content = os.pread(self._file, self._bytes, self._start(row))
                found[place] = np.frombuffer(content, np.float32).reshape(self.shape[1:])
        except OSError as error:
            raise file_error("read", self.path, error) from error
        return found

    def write(self, rows: Iterable[int], values: NDArray[np.float32]) -> None:
        """Replace rows by ``values`` (k, …).

        Raises:
            StoreError: they cannot be written, as on a full disk.
        """
        try:
            for row, value in zip(rows, values, strict=True):
                content = np.ascontiguousarray(value, np.float32).tobytes()
                written = os.pwrite(self._file, content, self._start(row))
                while written < len(content):  # a nearly full disk takes a part, then refuses
                    more = os.pwrite(self._file, content[written:], self._start(row) + written)
                    written += more
        except OSError as error:
            raise file_error("written", self.path, error) from error

    def close(self) -> None:
        """Give the file handle back; the file stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            self.close()

    def _start(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return row * self._bytes
