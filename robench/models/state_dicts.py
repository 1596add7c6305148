"""Finding the state dict in what a file holds, and putting it into a network, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from robench.errors import CheckpointError, KeyMismatchError
from robench.registry import near_misses

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "network.", "net.", "encoder.")
"""Prefixes that data parallelism, compilation and training frameworks leave on names."""

_SHOWN: Final = 8


def extract_state_dict(content: Any, key: str | None, *, where: object) -> dict[str, Tensor]:
    """The tensors at ``key`` (a dotted path; None: the content itself).

    A module found there, which only a trusted pickle can hold, stands for its state dict.

    Raises:
        CheckpointError: nothing is there, or something else than named tensors.
    """
    value, rest = content, key or ""
    while rest:
        if not isinstance(value, Mapping):
            raise CheckpointError(f"nothing at key {key!r}", where=where)
        # A key may itself contain dots: the longest one that exists wins.
        found = max((k for k in value if _leads(k, rest)), key=len, default=None)
        if found is None:
            names = [str(k) for k in value]
            close = near_misses(rest, names) or names[:_SHOWN]
            raise CheckpointError(
                f"has no key {key!r}",
                where=where,
                hint=f"It has: {', '.join(map(repr, close))}" if close else None,
            )
        value, rest = value[found], rest[len(found) + 1 :]
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping):
        problem = f"holds {type(value).__name__} where a state dict should be"
    elif others := [str(k) for k, v in value.items() if not isinstance(v, Tensor)]:
        problem = f"is not a plain state dict: {_shorten(others)} are no tensors"
    elif not value:
        problem = "is not a plain state dict: it holds no tensors"
    else:
        return {str(name): tensor for name, tensor in value.items()}
    raise CheckpointError(problem, where=where, hint="Name the state dict's place with weights.key")


def _leads(key: object, path: str) -> bool:
    return isinstance(key, str) and (path == key or path.startswith(f"{key}."))


def strip_prefix(state: Mapping[str, Tensor], prefix: str, *, where: object) -> dict[str, Tensor]:
    """Remove ``prefix`` from every name that has it.

    Raises:
        KeyMismatchError: no name has it, or removing it makes two names equal.
    """
    if not prefix:
        return dict(state)
    if not any(name.startswith(prefix) for name in state):
        raise KeyMismatchError(
            f"no parameter name begins with {prefix!r}",
            where=where,
            hint=f"They are like {next(iter(state), '')!r}; correct weights.strip_prefix",
        )
    stripped = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if len(stripped) != len(state):
        raise KeyMismatchError(f"names collide without the prefix {prefix!r}", where=where)
    return stripped


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], *, where: object) -> None:
    """Copy ``state`` into ``network``; names and shapes must agree exactly.

    Half-precision weights are converted to the network's dtype. A missing
    ``num_batches_tracked``, which files from before 2018 lack, is no difference: evaluation
    does not read it.

    Raises:
        KeyMismatchError: names missing or unexpected (both lists), shapes or kinds that differ.
            The network is unchanged then.
        CheckpointError: sparse or quantised tensors.
    """
    wanted = {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in wanted]
    if missing or unexpected:
        lists = (("missing from", missing), ("unexpected in", unexpected))
        parts = [f"{len(names)} {how} the file: {_shorten(names)}" for how, names in lists if names]
        raise KeyMismatchError(
            f"parameter names differ: {'; '.join(parts)}",
            where=where,
            hint=_key_hint(missing, unexpected),
        )
    shapes, kinds = [], []
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{name} is not a plain dense tensor", where=where)
        target = wanted[name]
        if tensor.shape != target.shape:
            shapes.append(f"{name} {_shape(tensor)} in the file, {_shape(target)} in the network")
        elif tensor.is_complex() or tensor.is_floating_point() != target.is_floating_point():
            kinds.append(f"{name} is {tensor.dtype}, the network's {target.dtype}")
    if shapes or kinds:
        raise KeyMismatchError(
            f"shapes differ: {_shorten(shapes, '; ')}" if shapes else _shorten(kinds, "; "),
            where=where,
            hint=_head_hint(state, wanted)
            if shapes
            else "Quantised weights have to be converted first",
        )
    with torch.no_grad():
        network.load_state_dict({**wanted, **state}, strict=True)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _shorten(items: list[str], separator: str = ", ") -> str:
    rest = len(items) - _SHOWN
    return separator.join(items[:_SHOWN]) + (f"{separator}and {rest} more" if rest > 0 else "")


def _key_hint(missing: list[str], unexpected: list[str]) -> str:
    for prefix in WRAPPER_PREFIXES:
        stripped = {name.removeprefix(prefix) for name in unexpected if name.startswith(prefix)}
        if stripped & set(missing):
            return f"Set weights.strip_prefix to {prefix!r}"
    if missing and unexpected:
        close = near_misses(missing[0], unexpected, n=1)
        if close:
            return f"{close[0]!r} in the file looks like {missing[0]!r}; check the architecture"
    return "Check the architecture and its arguments, weights.key and weights.strip_prefix"


def _head_hint(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    differing = [name for name in state if state[name].shape != wanted[name].shape]
    last = list(state)[-2:]
    if set(differing) <= set(last):
        classes = state[differing[-1]].shape[:1]
        if classes and wanted[differing[-1]].shape[:1] != classes:
            return f"Only the last layer differs: set num_classes to {classes[0]}"
    return "Check architecture.arguments (width, depth, channels)"
