"""The index of a checkpoint in several files: which tensor is in which of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.errors import CheckpointError


def parse_index(text: str | bytes, where: Path) -> dict[str, str]:
    """``weight_map`` of an index: the file of each tensor, beside the index.

    Raises:
        CheckpointError: it is no such index, names a tensor in two files, or files elsewhere.
    """
    try:
        index = json.loads(text, object_pairs_hook=lambda pairs: _each_once(pairs, where))
        places: dict[str, str] = dict(index["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("is JSON, but no index of shards of weights", where=where) from error
    for name in places.values():
        # A shard lies beside its index: no folders, no way out.
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"names the shard {name!r}, outside its folder", where=where)
    return places


def _each_once(pairs: list[tuple[str, Any]], where: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.setdefault(name, value) != value:
            raise CheckpointError(
                f"names {name!r} twice, as {found[name]!r:.100} and as {value!r:.100}", where=where
            )
    return found


def joined(places: Mapping[str, str], shards: Mapping[str, Any], where: Path) -> dict[str, Tensor]:
    """The tensors of all shards, each from the file that the index names.

    What stands in two shards has to be the same in both; what no index names is there too.

    Args:
        places: the file of each tensor.
        shards: what each file holds.
        where: the index.

    Raises:
        CheckpointError: a shard is no named tensors, lacks one of its own, or has another's with
            other values.
    """
    found: dict[str, Tensor] = {}
    for file, held in shards.items():
        if not isinstance(held, Mapping) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in held.items()
        ):
            raise CheckpointError(
                "is a shard of more than named tensors", where=where.parent / file
            )
        for name, tensor in held.items():
            if not _alike(found.setdefault(name, tensor), tensor):
                raise CheckpointError(
                    f"{name!r} is in several shards with different values, one of them {file!r}",
                    where=where,
                    hint=f"The index places it in {places[name]!r}: correct the shards"
                    if name in places
                    else "Correct the shards",
                )
    for name, file in places.items():
        if name not in shards[file]:
            raise CheckpointError(
                f"places {name!r} in {file!r}, which lacks it",
                where=where,
                hint="Fetch all files again: they are of different checkpoints",
            )
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    )
