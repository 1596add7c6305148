"""Finding the state dict in what a file holds, and putting it into a network, strictly."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from robench.errors import CheckpointError, KeyMismatchError
from robench.models.architectures.transformers_library import in_own_names
from robench.registry import near_misses

WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.", "model.", "network.", "net.", "encoder.")
"""Prefixes that data parallelism, compilation and training frameworks leave on names."""

_IN_THE_MIDDLE: Final = {"module", "_orig_mod", "_fsdp_wrapped_module"} | {
    "_checkpoint_wrapped_module"
}
"""What the same leave inside a name where a part of the network was wrapped"""

_SHOWN: Final = 8


def extract_state_dict(content: Any, key: str | None, *, where: object) -> dict[str, Tensor]:
    """The tensors at ``key`` (a dotted path; None: the content itself).

    A module found there, which only a trusted pickle can hold, stands for its state dict.

    Raises:
        CheckpointError: nothing is there, or something else than named tensors.
    """
    value, rest = with_names(content), key or ""
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


def with_names(content: Any) -> Any:
    """Of a list or tuple that a file holds a dictionary by place: ``(state_dict, acc)`` has the key
    ``"0"``; all else as it is."""
    if isinstance(content, (list, tuple)):
        return {str(place): item for place, item in enumerate(content)}
    return content


def _leads(key: object, path: str) -> bool:
    return isinstance(key, str) and (path == key or path.startswith(f"{key}."))


def fit_names(
    state: Mapping[str, Tensor], prefix: str, network: nn.Module, *, where: object
) -> tuple[dict[str, Tensor], list[str]]:
    """The entries that are the network's, by its own names, and the names of all others.

    ``prefix`` is taken off where a name begins with it. Entries without it are those of further
    modules beside the network, left out if the network has all that it needs without them.
    Wrappers' names in the middle of a name are taken out where the network has none.

    Raises:
        KeyMismatchError: no name begins with the prefix, or two names become equal.
    """
    if prefix and not any(name.startswith(prefix) for name in state):
        raise KeyMismatchError(
            f"no parameter name begins with {prefix!r}",
            where=where,
            hint=f"They are like {next(iter(state), '')!r}; correct weights.strip_prefix",
        )
    state, wanted = in_own_names(network, state, prefix), set(network.state_dict())
    own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    own = {inner_name(name, wanted): tensor for name, tensor in own.items()}
    others = {n: t for n, t in state.items() if not n.startswith(prefix)}
    count = len(own) + len(others)
    left_out: list[str] = []
    if all(name in own for name in wanted if not is_counter(name)):
        left_out, others = list(others), {}
        count -= len(left_out)
    fitted = {**own, **others}
    if len(fitted) != count or len(own) != sum(n.startswith(prefix) for n in state):
        raise KeyMismatchError(f"names collide without the prefix {prefix!r}", where=where)
    return fitted, left_out


def inner_name(name: str, wanted: Collection[str]) -> str:
    """``name`` without the wrappers in its middle, if that is what the network calls it."""
    first, *rest = name.split(".")
    plain = ".".join([first, *(part for part in rest if part not in _IN_THE_MIDDLE)])
    return plain if name not in wanted and plain in wanted else name


def is_counter(name: str) -> bool:
    """Whether it is batch normalisation's counter, which evaluation does not read."""
    return name.endswith("num_batches_tracked")


def load_strictly(
    network: nn.Module, state: Mapping[str, Tensor], *, where: object, prefix: str = ""
) -> None:
    """Copy ``state`` into ``network``; names and shapes must agree exactly.

    Half-precision weights are converted to the network's dtype. A missing
    ``num_batches_tracked``, which files from before 2018 lack, is no difference: evaluation
    does not read it. ``prefix`` is what has been taken off the names; hints begin with it.

    Raises:
        KeyMismatchError: names missing or unexpected (both lists), shapes or kinds that differ.
            The network is unchanged then.
        CheckpointError: sparse or quantised tensors.
    """
    wanted = {k: v for k, v in network.state_dict().items() if isinstance(v, Tensor)}
    missing = [k for k in wanted if k not in state and not is_counter(k)]
    unexpected = [k for k in state if k not in wanted]
    if missing or unexpected:
        lists = (("missing from", missing), ("unexpected in", unexpected))
        parts = [f"{len(names)} {how} the file: {_shorten(names)}" for how, names in lists if names]
        raise KeyMismatchError(
            f"parameter names differ: {'; '.join(parts)}",
            where=where,
            hint=_key_hint(missing, unexpected, prefix),
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


def _key_hint(missing: list[str], unexpected: list[str], taken: str) -> str:
    """What to do; ``taken``: the prefix that the names had before."""
    there = set(unexpected)
    whole = [
        name.removesuffix(missing[0])
        for name in (unexpected if missing else ())
        if name.endswith(f".{missing[0]}")
        and all(name.removesuffix(missing[0]) + lacking in there for lacking in missing)
    ]
    if whole:
        shown = " or ".join(repr(taken + prefix) for prefix in whole[:3])
        return (
            f"Set weights.strip_prefix to {shown} in a card; --weights strip_prefix={taken + whole[0]}; "
            "prefix= in Python"
        )
    for prefix in WRAPPER_PREFIXES:
        stripped = {name.removeprefix(prefix) for name in unexpected if name.startswith(prefix)}
        if stripped & set(missing):
            return f"Set weights.strip_prefix to {taken + prefix!r}"
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
