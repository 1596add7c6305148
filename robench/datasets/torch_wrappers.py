"""What torch's own wrappers, subsets and concatenations, hold: which sample each item is, of which class."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from robench.datasets.labels import names_by_label
from robench.errors import DataError, UsageError


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
    """What the source says its classes are called, in label order.

    Of labels that are numbers not, where they are mapped to others.

    Raises:
        UsageError: names that have no order.
    """
    if any(isinstance(label, str) for label in labels):
        return stated_names(source)
    while isinstance(source, Subset):
        indices, source = [source.indices[i] for i in indices], source.dataset
    targets = getattr(source, "targets", None)
    if targets is not None and not np.array_equal([targets[i] for i in indices], labels):
        return None
    return None if isinstance(source, ConcatDataset) else stated_names(source)


def stated_names(source: Any) -> list[str] | None:
    """``source.classes`` and ``source.class_to_idx``, through subsets and concatenations, in label order.

    Raises:
        UsageError: names that have no order; parts, or the two, that contradict each other.
    """
    if isinstance(source, Subset):
        return stated_names(source.dataset)
    if isinstance(source, ConcatDataset):
        said = [stated_names(part) for part in source.datasets]
        if any(names != said[0] for names in said):
            raise UsageError(
                "the parts of a ConcatDataset name other classes, or in another order",
                hint="Say all names in label order: class_names=[…] of robench.datasets.from_torch",
            )
        return said[0] if said else None
    classes, places = getattr(source, "classes", None), getattr(source, "class_to_idx", None)
    if places is not None:
        places = {str(n): i for n, i in places.items()} if isinstance(places, Mapping) else None
    if classes is None:
        return None if places is None else names_by_label(places, "class_to_idx")
    if not isinstance(classes, Iterable):
        return None
    names = names_by_label(classes, "classes")
    # Some have several words for a class, and each of them leads to it.
    if places is not None and places and all(name in places for name in names):
        names = names_by_label({name: places[name] for name in names}, "class_to_idx")
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
