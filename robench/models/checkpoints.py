"""Weights files → tensors, without executing anything that a file carries.

The hash is compared before any parser sees the file. Then ``safetensors``, or
``torch.load(weights_only=True)``, which rebuilds tensors and containers and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from enum import StrEnum
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from robench.errors import (
    CheckpointError,
    HashMismatchError,
    UnsafeCheckpointError,
    one_line,
)
from robench.models.pickle_scan import PickleScan, scan_pickles
from robench.models.shards import joined, parse_index

_CHUNK: Final = 2**20
_MAX_EXPANSION: Final = 20
"""A zip that unpacks to more than this many times its size is a bomb; torch does not compress."""

_FOREIGN: Final = (
    (b"\x89HDF", "is an HDF5 file (Keras)", "Convert it to safetensors first"),
    (b"version https://git-lfs", "is a git-lfs pointer, not the weights", "Run `git lfs pull`"),
    (b"\x1f\x8b", "is gzip-compressed", "Unpack it first"),
    (b"TFL3", "is a TensorFlow Lite model", "Convert it to safetensors first"),
    (b"\x08\x07\x12\x07pytorch", "is an ONNX model", "Convert it to safetensors first"),
)
_HTML: Final = (b"<!doctype", b"<html", b"<head", b"<?xml")

# Training scripts often store an accuracy as a NumPy number beside the weights. These build
# numbers from bytes and nothing else; NumPy 2 moved the function, so both names are known.
_SCALAR: Final = np.float64(0).__reduce__()[0]
_NUMBERS: Final[list[Any]] = [
    np.dtype,
    *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


class CheckpointFormat(StrEnum):
    """Layouts that robench tells apart by content, never by a file's name."""

    SAFETENSORS = "safetensors"
    SHARDS = "index of shards"
    TORCH_ZIP = "torch"
    TORCH_LEGACY = "torch, legacy layout"
    TORCHSCRIPT = "TorchScript"
    EXPORTED = "torch.export"

    @property
    def is_program(self) -> bool:
        """The file brings its network along."""
        return self in (CheckpointFormat.TORCHSCRIPT, CheckpointFormat.EXPORTED)


def checkpoint_sha256(path: Path) -> str:
    """SHA-256 of a checkpoint, read in pieces.

    For an index of shards it covers the index and, by name, every shard.

    Raises:
        CheckpointError: the file cannot be read.
    """
    own = _digest(path)
    if not _starts_like_json(_head(path)):
        return own
    digest = hashlib.sha256(own.encode())
    for name in shard_names(path):
        digest.update(f"{name}:{_digest(path.parent / name)}".encode())
    return digest.hexdigest()


def verify_sha256(path: Path, expected: str) -> None:
    """Compare the checkpoint with its card's hash.

    Raises:
        HashMismatchError: they differ; nothing was parsed.
        CheckpointError: the file cannot be read.
    """
    actual = checkpoint_sha256(path)
    if actual != expected:
        raise HashMismatchError(
            f"sha256 is {actual}, the card says {expected}",
            where=path,
            hint="The file was changed or cut short; fetch it again, or correct the card",
        )


def detect_format(path: Path) -> CheckpointFormat:
    """Tell the layout by the file's first bytes and, for archives, by their entries.

    Raises:
        CheckpointError: it is no checkpoint; says what it is where that is known.
    """
    head = _head(path)
    if not head:
        raise CheckpointError("is empty", where=path, hint="Fetch it again")
    for magic, what, hint in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(what, where=path, hint=hint)
    if head.lstrip().lower().startswith(_HTML):
        raise CheckpointError(
            "is a web page, not weights", where=path, hint="Fetch it again by its direct link"
        )
    if head.startswith(b"PK"):
        return _zip_format(path)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return CheckpointFormat.SAFETENSORS
    if _starts_like_json(head):
        return CheckpointFormat.SHARDS
    if head[:1] == b"\x80":
        return CheckpointFormat.TORCH_LEGACY
    raise CheckpointError(
        "is not a checkpoint", where=path, hint="robench reads safetensors and torch.save files"
    )


def read_checkpoint(path: str | os.PathLike[str], *, trust_pickle: bool = False) -> Any:
    """What a weights file holds: usually a dict of tensors, maybe nested, on the CPU.

    Args:
        path: the file, or the ``*.index.json`` of shards, of safetensors or of torch.
        trust_pickle: execute the code that a pickle carries. Only for files whose maker you trust
            as much as a program you run.

    Raises:
        UnsafeCheckpointError: reading would execute code; says which calls.
        CheckpointError: empty, truncated, corrupt, or no checkpoint at all.
    """
    path = Path(path)
    layout = detect_format(path)
    if layout is CheckpointFormat.SAFETENSORS:
        return _read_safetensors(path)
    if layout is CheckpointFormat.SHARDS:
        places = _places(path)
        files = sorted(set(places.values()))
        shards = {name: _read_shard(path.parent / name, trust_pickle) for name in files}
        return joined(places, shards, path)
    if layout.is_program:
        raise UnsafeCheckpointError(
            f"is a {layout} file: a program, not only weights",
            where=path,
            hint="Load it with --arch program and --trust-pickle if you trust its maker",
        )
    return _read_pickle(path, trust_pickle)


def _open(path: Path) -> BufferedReader:
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise CheckpointError(
            "is a pipe or a device, not a file", where=path
        )  # which may never end
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"cannot be read: {reason}", where=path) from error


def _digest(path: Path) -> str:
    with _open(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _head(path: Path) -> bytes:
    with _open(path) as stream:
        return stream.read(512)


def _starts_like_json(head: bytes) -> bool:
    return head.lstrip().startswith(b"{")


def _zip_format(path: Path) -> CheckpointFormat:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile raises more than BadZipFile on mutated archives.
        raise CheckpointError(
            "is a truncated or corrupt archive", where=path, hint="Fetch it again"
        ) from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _MAX_EXPANSION * max(path.stat().st_size, _CHUNK):
        raise CheckpointError(f"unpacks to {unpacked:,} bytes, far above its size", where=path)
    # Every torch format keeps its entries below one folder named after the file.
    names = [entry.filename for entry in entries]
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") for name in inner) and "constants.pkl" in inner:
        return CheckpointFormat.TORCHSCRIPT
    if "archive_format" in inner or any(
        name.endswith("serialized_exported_program.json") for name in names
    ):
        return CheckpointFormat.EXPORTED
    if "data.pkl" in inner:
        return CheckpointFormat.TORCH_ZIP
    raise CheckpointError(
        "is an archive without weights", where=path, hint="Unpack it and name the file inside"
    )


def shard_names(path: Path) -> list[str]:
    """The files that an index of shards names, which lie beside it.

    Raises:
        CheckpointError: it cannot be read, is no such index, or names files elsewhere.
    """
    return sorted(set(_places(path).values()))


def _places(path: Path) -> dict[str, str]:
    with _open(path) as stream:
        return parse_index(stream.read(256 * _CHUNK), path)


def _read_shard(path: Path, trust_pickle: bool) -> Any:
    if not path.is_file():
        raise CheckpointError("the shard is missing", where=path)
    if detect_format(path) is CheckpointFormat.SHARDS:
        raise CheckpointError("is an index, where a shard should be", where=path)
    return read_checkpoint(path, trust_pickle=trust_pickle)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    # Imported here: only such files need it.
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except Exception as error:  # A damaged file makes the parser raise almost anything.
        raise _corrupt(path, error) from error
    return tensors


class _StandIn:
    """In place of what a file holds beside the weights: takes anything, and does nothing."""

    def __init__(self, *_arguments: Any, **_named: Any) -> None:
        return

    def __setstate__(self, state: object) -> None:
        return


class _MappingStandIn:
    """The same for classes derived from ``dict``: torch's parser fills only those it knows."""

    def __new__(cls, *_arguments: Any) -> Any:
        return OrderedDict()


def _no_items(*_arguments: Any) -> list[Any]:
    return []


_CONTAINERS: Final[dict[str, Any]] = {
    "collections.deque": _no_items,
    "collections.defaultdict": _MappingStandIn,
    "collections.Counter": _MappingStandIn,
}


def _read_pickle(path: Path, trust_pickle: bool) -> Any:
    with _open(path) as stream:
        try:
            return _parse(stream, _NUMBERS, trust_pickle)
        except MemoryError as error:
            raise CheckpointError("asks for more memory than there is", where=path) from error
        except Exception as error:  # A damaged file makes the parser raise almost anything.
            refused = error
        scan = scan_pickles(stream)
        if trust_pickle or not isinstance(refused, pickle.UnpicklingError):
            raise _unread(path, refused, scan) from refused
        if scan.code:
            shown = ", ".join(scan.imported[:3]) + (", …" if len(scan.imported) > 3 else "")
            raise UnsafeCheckpointError(
                f"reading it would execute code: {shown}",
                where=path,
                hint="Save it as a state dict or safetensors; or --trust-pickle if you trust it",
            ) from refused
        try:
            return _parse_with_stand_ins(stream, scan.beside)
        except Exception as error:
            if scan.plain or not scan.whole:
                raise _unread(path, error, scan) from error
            raise CheckpointError(
                f"holds more than weights, in a form that cannot be read safely: {_reason(error)}",
                where=path,
                hint="Save the state dict alone, with torch.save's own protocol or as safetensors",
            ) from error


def _parse_with_stand_ins(stream: BufferedReader, names: list[str]) -> Any:
    kinds = {name: _CONTAINERS.get(name) or type(name, (_StandIn,), {}) for name in names}
    while True:
        try:
            return _parse(stream, [(kind, name) for name, kind in kinds.items()], False)
        except pickle.UnpicklingError as error:
            text = str(error)
            mappings = [name for name, kind in kinds.items() if f"got {kind!r}" in text]
            if "SETITEM" not in text or not mappings:
                raise
            kinds |= dict.fromkeys(mappings, _MappingStandIn)


def _parse(stream: BufferedReader, known: list[Any], trust_pickle: bool) -> Any:
    stream.seek(0)
    with warnings.catch_warnings(), torch.serialization.safe_globals(known):
        # Old storages warn about TypedStorage; nobody who evaluates can change that.
        warnings.simplefilter("ignore")
        # torch's own documentation: weights_only executes no code of the file.
        return torch.load(stream, map_location="cpu", weights_only=not trust_pickle)


def _unread(path: Path, error: BaseException, scan: PickleScan) -> CheckpointError:
    if not scan.plain:
        return _corrupt(path, error)
    return CheckpointError(
        "is a pickle that torch.save did not write",
        where=path,
        hint="Save a dict of tensors by torch.save or as safetensors; torch.from_numpy makes "
        "tensors of NumPy's arrays",
    )


def _corrupt(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"is truncated, corrupt or no checkpoint ({_reason(error)})",
        where=path,
        hint="Fetch it again",
    )


def _reason(error: BaseException) -> str:
    # torch appends paragraphs of advice about disabling its check; ours is in the hint.
    return one_line(error).partition(" (1) ")[0]
