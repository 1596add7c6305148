"""What torch's own wrappers, subsets and concatenations, hold: which sample each item is, of which class."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from robench.errors import DataError


def refuse_repeated(source: Any, indices: Iterable[int], where: object) -> None:
    """Refuse items of which two are one sample, which would count twice in every figure.

    What a class of the user's makes of a sample is a sample of its own.

    Args:
        source: a map-style data set.
        indices: the items.
        where: for the error.

    Raises:
        DataError: two items are the same sample.
    """
    if not _looks_through(source):
        return
    seen: dict[tuple[int, int], int] = {}
    for item in indices:
        sample = _sample(source, item)
        if (first := seen.setdefault(sample, item)) != item:
            raise DataError(
                f"items {first} and {item} are the same sample, {sample[1]} of what the "
                f"{type(source).__name__} is made of",
                where=where,
                hint="Take each sample once: it would count twice in every figure",
            )


def names_of_classes(
    source: Any, indices: Sequence[int], labels: Sequence[Any]
) -> list[str] | None:
    """``source.classes``, through subsets, unless labels are mapped to others."""
    while isinstance(source, Subset):
        indices, source = [source.indices[i] for i in indices], source.dataset
    classes, targets = getattr(source, "classes", None), getattr(source, "targets", None)
    if classes is None:
        return None
    if targets is not None and not np.array_equal([targets[i] for i in indices], labels):
        return None
    names = [str(name) for name in classes]
    often = Counter(names)
    # ImageNet's words, for one, are those of several classes.
    return [n if often[n] == 1 else f"{n} {label}" for label, n in enumerate(names)]


def _looks_through(source: Any) -> bool:
    """Whether an item is an item of another data set, unchanged."""
    return getattr(type(source), "__getitem__", None) in (
        Subset.__getitem__,
        ConcatDataset.__getitem__,
    )


def _sample(source: Any, index: int) -> tuple[int, int]:
    """The innermost data set's identity, and the index there."""
    while _looks_through(source):
        index += len(source) if index < 0 else 0
        if isinstance(source, Subset):
            index, source = int(source.indices[index]), source.dataset
        else:
            place = bisect_right(source.cumulative_sizes, index)
            index -= source.cumulative_sizes[place - 1] if place else 0
            source = source.datasets[place]
    return id(source), index + (len(source) if index < 0 else 0)
