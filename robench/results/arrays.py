"""Arrays kept with a record: adversarial inputs, sample panels. One npz a record.

What grows with the number of samples is written and read by rows, so that no process needs memory
for all of it. The members of an npz are plain npy files, deflated one after the other: they can be
written as they come, and rows that are asked for in their order are read in one pass.
"""

import contextlib
import math
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from robench.errors import CorruptRecordError, RobenchError, one_line
from robench.files import file_error, file_sha256

Array = npt.NDArray[Any]

ADVERSARIAL = "adversarial"
"""The name of a record's adversarial inputs among its arrays"""

_FAST, _SMALL = 1, 6
"""Levels of deflation. Of adversarial inputs level 6 makes up to a third less, in up to six times
the time."""


@dataclass(frozen=True)
class Rows:
    """An array (n, …) that is made while it is written."""

    shape: tuple[int, ...]
    """Of the whole."""
    parts: Iterable[Array]
    """float32 (k, …), its rows in order."""


def save_arrays(stream: BinaryIO, arrays: Mapping[str, Array | Rows]) -> None:
    """Write named arrays as an npz; the same arrays always give the same bytes."""
    level = _FAST if any(isinstance(array, Rows) for array in arrays.values()) else _SMALL
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name in sorted(arrays):
            _write_member(archive, name, arrays[name])


def _write_member(archive: zipfile.ZipFile, name: str, array: Array | Rows) -> None:
    # Opened by name a member is dated 1980: the same content gives the same bytes.
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        if not isinstance(array, Rows):
            np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
            return
        header = {"descr": "<f4", "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        written = 0
        for part in array.parts:
            stream.write(np.ascontiguousarray(part, "<f4").tobytes())
            written += len(part)
        if written != array.shape[0]:
            raise ValueError(f"{written} rows were made for an array of shape {array.shape}")


def array_names(path: Path) -> set[str]:
    """The names of the arrays in a file; only its table of contents is read.

    Raises:
        StoreError: it cannot be read.
        CorruptRecordError: it is missing or damaged.
    """
    with _reading(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def load_arrays(path: Path, digest: str, leave_out: Collection[str] = ()) -> dict[str, Array]:
    """The arrays of a file by name, its checksum verified; errors as of :func:`array_names`."""
    check_digest(path, digest)
    with _reading(path), np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if name not in leave_out}


class ArrayRows:
    """The rows of an array in a file, read when they are asked for.

    Asking in the rows' order reads the file once; going back begins it anew. The file stays open
    as long as the object is referred to.

    Raises:
        StoreError: it cannot be read.
        CorruptRecordError: it is missing or damaged, or has no such array.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        with _reading(path):
            archive = zipfile.ZipFile(path)
            self._stream = archive.open(f"{name}.npy")
            version, _ = np.lib.format.read_magic(self._stream)
            read_header = getattr(np.lib.format, f"read_array_header_{version}_0")
            self.shape, _, self._dtype = read_header(self._stream)
            self._start = self._stream.tell()
        self._row_bytes = self._dtype.itemsize * math.prod(self.shape[1:])

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]] | slice) -> Array:
        """The rows (k, …) in the order asked for; ``[:]``: all of them.

        Raises:
            IndexError: there is no such row.
            StoreError, CorruptRecordError: as for the object.
        """
        chosen = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
        wanted = np.asarray(chosen, np.int64)
        if ((wanted < 0) | (wanted >= len(self))).any():
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {len(self)}")
        found = np.empty((len(wanted), *self.shape[1:]), self._dtype)
        with _reading(self._path):
            for place in np.argsort(wanted, kind="stable"):
                self._stream.seek(self._start + int(wanted[place]) * self._row_bytes)
                content = self._stream.read(self._row_bytes)
                found[place] = np.frombuffer(content, self._dtype).reshape(self.shape[1:])
        return found


def check_size(path: Path, size: int) -> None:
    """Raise unless the file is there and has ``size`` bytes."""
    with _reading(path):
        found = path.stat().st_size
    if found != size:
        raise CorruptRecordError(f"its arrays have {found} bytes instead of {size}", where=path)


def check_digest(path: Path, digest: str) -> None:
    """Raise unless the file is there and has the SHA-256 ``digest``."""
    with _reading(path):
        found = file_sha256(path)
    if found != digest:
        raise CorruptRecordError("the arrays' checksum is wrong", where=path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong with the file is said in one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise CorruptRecordError("its arrays are missing", where=path) from error
    except OSError as error:
        raise file_error("read", path, error) from error
    except RobenchError:
        raise
    except Exception as error:  # A damaged file makes the decoder raise almost anything.
        raise CorruptRecordError(f"arrays cannot be read: {one_line(error)}", where=path) from error
