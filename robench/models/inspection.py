"""What is in a weights file, and a guess at how to load it when no card says so."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from robench.errors import CheckpointError
from robench.models.checkpoints import (
    CheckpointFormat,
    checkpoint_sha256,
    detect_format,
    read_checkpoint,
)
from robench.models.state_dicts import WRAPPER_PREFIXES

__all__ = [
    "CheckpointInspection",
    "StateDictCandidate",
    "TensorInfo",
    "inspect_checkpoint",
    "matching_prefix",
]

_DEPTH: Final = 3

# In order of preference. Averaged weights come last: which of the two a paper evaluates is the
# user's to say, and both are listed.
_USUAL_KEYS: Final = (
    "",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "params",
    "weights",
    "last",
    "best",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema",
)


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of one parameter, without its values."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class StateDictCandidate:
    """One state dict in the file.

    Args:
        key: its dotted path; None: the file is the state dict.
        prefix: wrapper prefix that all names share, such as ``module.``.
        tensors: name as in the file → shape and dtype.
    """

    key: str | None
    prefix: str
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @property
    def parameters(self) -> int:
        """Number of stored numbers, buffers included."""
        return sum(_size(info.shape) for info in self.tensors.values())

    @property
    def num_classes(self) -> int | None:
        """Rows of the last matrix: the number of logits if the last layer is linear."""
        last = [info.shape for info in self.tensors.values() if len(info.shape) == 2]
        return last[-1][0] if last else None


@dataclass(frozen=True)
class CheckpointInspection:
    """A file seen from outside.

    Args:
        path: the file.
        sha256: its hash.
        format: its layout.
        candidates: state dicts in it, the likeliest first; empty for programs.
        others: what else is at the top level: name → short description.
    """

    path: Path
    sha256: str
    format: CheckpointFormat
    candidates: tuple[StateDictCandidate, ...] = ()
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_program(self) -> bool:
        """The file brings its network: TorchScript or torch.export."""
        return self.format in (CheckpointFormat.TORCHSCRIPT, CheckpointFormat.EXPORTED)

    @property
    def best(self) -> StateDictCandidate:
        """The likeliest state dict.

        Raises:
            CheckpointError: the file holds none.
        """
        if not self.candidates:
            found = ", ".join(f"{k}: {v}" for k, v in list(self.others.items())[:8])
            raise CheckpointError(
                "holds no state dict" + (f", only {found}" if found else ""), where=self.path
            )
        return self.candidates[0]


def inspect_checkpoint(
    path: str | os.PathLike[str], *, trust_pickle: bool = False
) -> CheckpointInspection:
    """Look for state dicts under any key and for the prefixes that wrappers leave on names.

    Raises:
        UnsafeCheckpointError: reading would execute code.
        CheckpointError: the file cannot be read.
    """
    path = Path(path)
    layout = detect_format(path)
    digest = checkpoint_sha256(path)
    if layout in (CheckpointFormat.TORCHSCRIPT, CheckpointFormat.EXPORTED):
        return CheckpointInspection(path, digest, layout)
    content = read_checkpoint(path, trust_pickle=trust_pickle)
    found = [
        StateDictCandidate(key or None, _shared_prefix(list(tensors)), _describe_all(tensors))
        for key, tensors in _state_dicts(content, "", _DEPTH)
    ]
    found.sort(key=lambda candidate: (_rank(candidate.key or ""), -candidate.parameters))
    others = {}
    if isinstance(content, Mapping):
        taken = {(candidate.key or "").partition(".")[0] for candidate in found}
        others = {
            str(k): _describe(v)
            for k, v in content.items()
            if taken != {""} and str(k) not in taken
        }
    elif not found:
        others = {"the file": _describe(content)}
    return CheckpointInspection(path, digest, layout, tuple(found), others)


def matching_prefix(network: nn.Module, tensors: Mapping[str, object]) -> str | None:
    """The prefix without which the names are the network's; None if there is none.

    A prefix such as ``model.`` may belong to the network's own names, which only the network
    can tell.
    """
    wanted = set(network.state_dict())
    prefix = ""
    for candidate in (*_growing_prefixes(list(tensors)),):
        prefix = candidate
        if wanted == {name.removeprefix(prefix) for name in tensors}:
            return prefix
    return None


def _state_dicts(value: Any, key: str, depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping) or not value:
        return
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        yield key, value
    elif depth:
        for name, inner in value.items():
            if isinstance(name, str):
                yield from _state_dicts(inner, f"{key}.{name}" if key else name, depth - 1)


def _rank(key: str) -> tuple[int, int]:
    last = key.rpartition(".")[2].casefold()
    place = _USUAL_KEYS.index(last) if last in _USUAL_KEYS else len(_USUAL_KEYS)
    return place, key.count(".")


def _growing_prefixes(names: list[str]) -> Iterator[str]:
    """``""``, then ever longer chains of wrapper prefixes that all names share."""
    prefix = ""
    yield prefix
    while names:
        longer = [
            prefix + p for p in WRAPPER_PREFIXES if all(n.startswith(prefix + p) for n in names)
        ]
        if not longer:
            return
        prefix = longer[0]
        yield prefix


def _shared_prefix(names: list[str]) -> str:
    return list(_growing_prefixes(names))[-1]


def _describe_all(tensors: Mapping[str, Tensor]) -> dict[str, TensorInfo]:
    return {
        name: TensorInfo(tuple(t.shape), str(t.dtype).removeprefix("torch."))
        for name, t in tensors.items()
    }


def _describe(value: Any) -> str:
    if isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 40 else text[:39] + "…"
    if isinstance(value, Mapping):
        return f"dict of {len(value)}"
    if isinstance(value, Tensor):
        return f"tensor {tuple(value.shape)}"
    return type(value).__name__


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
