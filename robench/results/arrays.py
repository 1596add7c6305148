"""Arrays kept with a record: adversarial inputs, sample panels. One npz a record."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from robench.errors import CorruptRecordError
from robench.files import atomic_write, file_error, file_sha256

__all__ = ["Array", "check_digest", "check_size", "load_arrays", "write_arrays"]

Array = npt.NDArray[Any]


def write_arrays(path: Path, arrays: Mapping[str, Array], created: list[Path]) -> dict[str, Any]:
    """Write named arrays beside ``path``, in a file that is named by its own checksum.

    Args:
        path: the record's JSON.
        arrays: by name.
        created: files made on the way are added, so that a failure can remove them.

    Returns:
        Name, checksum and size, for the record's JSON.

    Raises:
        StoreError: they cannot be written.
    """
    # Too large to render in memory a second time: written once, named when its digest is
    # known.
    draft = path.with_suffix(f".{os.getpid()}.draft.npz")
    created.append(draft)

    def save(stream: BinaryIO) -> None:
        ordered = {name: np.asarray(arrays[name]) for name in sorted(arrays)}
        np.savez_compressed(stream, allow_pickle=False, **ordered)

    atomic_write(draft, save)
    try:
        digest = file_sha256(draft)
        size = draft.stat().st_size
        target = path.with_suffix(f".{digest[:12]}.npz")
        if not target.exists():
            created.append(target)
        os.replace(draft, target)
    except OSError as error:
        raise file_error("written", draft, error) from error
    return {"name": target.name, "sha256": digest, "bytes": size}


def load_arrays(path: Path, digest: str) -> dict[str, Array]:
    """The arrays of a file by name, its checksum verified.

    Raises:
        StoreError: it cannot be read.
        CorruptRecordError: it is missing or damaged.
    """
    check_digest(path, digest)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile) as error:
        raise CorruptRecordError(f"arrays cannot be read: {error}", where=path) from error
    except OSError as error:
        raise file_error("read", path, error) from error


def check_size(path: Path, size: int) -> None:
    """Raise unless the file is there and has ``size`` bytes."""
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise CorruptRecordError("its arrays are missing", where=path) from error
    except OSError as error:
        raise file_error("read", path, error) from error
    if found != size:
        raise CorruptRecordError(f"its arrays have {found} bytes instead of {size}", where=path)


def check_digest(path: Path, digest: str) -> None:
    """Raise unless the file is there and has the SHA-256 ``digest``."""
    try:
        found = file_sha256(path)
    except FileNotFoundError as error:
        raise CorruptRecordError("its arrays are missing", where=path) from error
    except OSError as error:
        raise file_error("read", path, error) from error
    if found != digest:
        raise CorruptRecordError("the arrays' checksum is wrong", where=path)
