"""Labels and the names of classes: one rule for folders, arrays, torch's and the Hub's data.

A label is the index of a class: any type of integer, or bool; one for each sample, or one-hot.
Texts are names of classes. Floats, probabilities and several labels for a sample are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.datasets.pixels import plain_tensor
from robench.errors import DataError, UsageError

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)

MOST_CLASSES = 1_000_000
"""A label beyond this is no class, unless somebody says how many there are."""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes in label order: by value if all are whole numbers, else by code point."""
    listed = list(names)
    if all(_NUMBER.fullmatch(name) for name in listed):
        return sorted(listed, key=lambda name: (int(name), name))
    return sorted(listed)


def listed_names(given: Any) -> list[str]:
    """Names of classes as :func:`names_by_label` takes them, each once.

    Raises:
        UsageError: no such list, or a name twice.
    """
    found = names_by_label(given)
    if len(set(found)) != len(found):
        raise UsageError(f"a class is named twice among {', '.join(found)[:200]}")
    return found


def names_by_label(given: Any, where: object = None) -> list[str]:
    """Names of classes in label order, whatever says them.

    Args:
        given: any iterable of names in that order; one text, with commas between or a list in JSON;
            or a mapping, ``{name: index}`` or ``{index: name}``, whose indices are the labels.
        where: for errors.

    Raises:
        UsageError: no such thing; a set, which has no order; indices that are not 0 to K - 1.
    """
    if isinstance(given, Mapping):
        return _by_index(given, where)
    if isinstance(given, (set, frozenset)):
        raise UsageError(
            "names of classes are a set, which has no order",
            where=where,
            hint="Give a list in label order, or {name: index}",
        )
    if isinstance(given, str):
        names: Any = given.split(",")
        if given.lstrip().startswith("["):
            try:
                names = json.loads(given)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{given!r} is no list of names: {error}", where=where) from error
        return [str(name).strip() for name in names]
    try:
        return [str(name) for name in given]
    except TypeError as error:
        raise UsageError(f"{type(given).__name__} is no list of names", where=where) from error


def _by_index(given: Mapping[Any, Any], where: object) -> list[str]:
    pairs = list(given.items())
    if not all(_is_whole(index) for _, index in pairs):
        pairs = [(name, index) for index, name in pairs]
    indices = [int(index) if _is_whole(index) else None for _, index in pairs]
    if set(indices) != set(range(len(pairs))):
        raise UsageError(
            "the indices of names of classes are not 0 to "
            f"{len(pairs) - 1}, each once: {', '.join(map(str, indices))[:100]}",
            where=where,
            hint="Give {name: index}, or a list of all names in label order as class_names",
        )
    return [str(name) for _, name in sorted((int(index), name) for name, index in pairs)]


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def numbered_classes(labels: Tensor, num_classes: int | None, where: object = None) -> list[str]:
    """Class names ``"0"``, ``"1"``, …; of ``num_classes`` None, up to the largest label.

    Raises:
        DataError: the largest label is no number of a class.
        UsageError: so many classes there are not.
    """
    if num_classes is None:
        num_classes = int(labels.max()) + 1 if labels.numel() else 0
        if num_classes > MOST_CLASSES:
            raise DataError(
                f"the largest label is {num_classes - 1}",
                where=where,
                hint="Give indices of classes, or say how many there are: num_classes",
            )
    else:
        check_class_count(num_classes, where)
    return [str(i) for i in range(num_classes)]


def check_class_count(num_classes: Any, where: object = None) -> None:
    """Refuse what is no number of classes.

    Raises:
        UsageError: it is no whole number, below 1 or above :data:`MOST_CLASSES`.
    """
    if not _is_whole(num_classes) or not 1 <= num_classes <= MOST_CLASSES:
        raise UsageError(
            f"num_classes is {num_classes!r:.50}, no whole number from 1 to {MOST_CLASSES}",
            where=where,
        )


def class_labels(
    values: Any,
    *,
    where: object,
    class_names: Any = None,
    num_classes: int | None = None,
) -> tuple[Tensor, list[str]]:
    """Labels in any form → indices, int64 (N,), and the name of each class.

    Args:
        values: a tensor, array or list: integers or bool (N,) or (N, 1); one-hot (N, K); or names.
        where: for errors.
        class_names: one a class, as :func:`names_by_label` takes them; None: the names among the
            values, in order, or the numbers.
        num_classes: where there are no names; None: the width of one-hot labels, or the largest
            label + 1.

    Raises:
        DataError: these are no labels.
        UsageError: no names of classes.
    """
    names = None if class_names is None else names_by_label(class_names, where)
    if isinstance(values, Tensor):
        kind = str(values.dtype)
        values = plain_tensor(values, "labels", where)
        array = (values.float() if values.is_floating_point() else values).numpy()
    elif np.ma.is_masked(values):
        raise DataError("some labels are masked", where=where)
    else:
        try:
            # NumPy's texts lose the NULs that they end in, its objects lose nothing.
            texts = (
                [isinstance(v, str) for v in values] if isinstance(values, (list, tuple)) else []
            )
            if any(texts) and not all(texts):
                raise ValueError("some are texts and some are not")
            array = np.asarray(values, dtype=object if any(texts) else None)
        except ValueError as error:
            raise DataError(f"the labels are no class numbers: {error}", where=where) from error
        kind = str(array.dtype)
    if array.dtype == object and any(value is None for value in array.flat):
        raise DataError("some labels are not known: None", where=where)
    named = array.dtype == object and array.size and all(isinstance(v, str) for v in array.flat)
    if array.dtype.kind == "U" or named:
        return _named(array, where, names)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    elif array.ndim == 2:
        if names is not None and len(names) != array.shape[1]:
            raise DataError(
                f"one-hot labels of {array.shape[1]} classes, and {len(names)} class names",
                where=where,
            )
        num_classes = array.shape[1] if num_classes is None else num_classes
        array = _of_one_hot(array, where)
    if array.dtype.kind not in "biu":
        raise DataError(
            f"labels are {kind}, no class numbers",
            where=where,
            hint="Give integer class indices, as labels.long()",
        )
    if array.dtype == np.uint64 and array.size and int(array.max()) > MOST_CLASSES:
        raise DataError(f"a label is {int(array.max())}", where=where)
    labels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64).copy())
    if names is not None:
        return labels, names
    return labels, numbered_classes(labels, num_classes, where)


def _named(
    array: np.ndarray[Any, Any], where: object, class_names: list[str] | None
) -> tuple[Tensor, list[str]]:
    values = [str(value) for value in array.reshape(-1)]
    names = in_order(set(values)) if class_names is None else class_names
    position = {name: label for label, name in enumerate(names)}
    strange = sorted(set(values) - position.keys())
    if strange:
        raise DataError(f"no class is called {strange[0]!r}", where=where)
    return torch.tensor([position[value] for value in values], dtype=torch.int64), names


def _of_one_hot(array: np.ndarray[Any, Any], where: object) -> np.ndarray[Any, Any]:
    if not (np.isin(array, (0, 1)).all() and (array.sum(axis=1, dtype=np.float64) == 1).all()):
        raise DataError(
            f"labels of shape {array.shape} are not one-hot: rows of zeros and a single 1",
            where=where,
            hint="Give one class index for each sample, as labels.argmax(1)",
        )
    found: np.ndarray[Any, Any] = array.argmax(axis=1)
    return found
