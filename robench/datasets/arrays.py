"""Data sets in memory: tensors, and NumPy's and torch's files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from robench.datasets.base import SPLIT_NAMES, Dataset
from robench.datasets.labels import class_labels, listed_names, names_by_label
from robench.datasets.pixels import (
    array_tensor,
    channels_first,
    check_brightness,
    is_dark,
    plain_tensor,
    unit_range,
    white_of_type,
)
from robench.errors import DataError, UnknownNameError, UsageError, first_line

ARRAY_SUFFIXES = (".npz", ".npy", ".pt", ".pth")

INPUT_KEYS = ("inputs", "images", "x", "data", "X")
LABEL_KEYS = ("labels", "targets", "y", "label", "Y")

# What NumPy's arrays are rebuilt with, from bytes: nothing that is named in a file is called but these.
# NumPy 2 moved the function, so both of its names are known.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_PLAIN_ARRAYS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
]


class ArrayDataset(Dataset):
    """Inputs and labels that are tensors already.

    Args:
        inputs: (N, C, H, W); :mod:`robench.datasets.pixels` says what types become. uint8 is
            divided by 255 as it is read.
        labels: as :func:`robench.datasets.labels.class_labels` takes them.
        name, split: as it reads in records.
        num_classes: number of classes; None: from ``class_names``, else the largest label + 1.
        class_names: one a class, in the order of the labels or as ``{name: index}``; default ``"0"``,
            ``"1"``, …
        sample_ids: one a sample; default ``name/000000``, …
        masks: bool (N, H, W) where the objects are, if known.
        white: the value of the inputs that becomes 1.0; None: by their type.

    Raises:
        DataError: empty, of another shape, not finite or outside [0, 1], of a type that does not
            say what white is, or bad labels.
    """

    reads_alike = True

    def __init__(
        self,
        inputs: Tensor,
        labels: Any,
        *,
        name: str = "arrays",
        split: str = "test",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        sample_ids: Sequence[str] | None = None,
        masks: Tensor | None = None,
        white: float | None = None,
    ) -> None:
        where = f"{name} ({split})"
        inputs = plain_tensor(inputs, "inputs", where)
        if inputs.ndim != 4:
            raise DataError(
                f"inputs have shape {tuple(inputs.shape)}",
                where=where,
                hint="Give (N, C, H, W): samples, channels, height, width",
            )
        stored = inputs.dtype
        if white is not None or stored != torch.uint8:
            inputs = unit_range(inputs, where, white)
        if white is None and inputs.numel():
            highest = float(inputs.max()) / (255 if stored == torch.uint8 else 1)
            # Floats in [0, 1] are what is asked for; whoever scaled them so may have meant it.
            self.dark = stored.is_floating_point and highest > 0 and is_dark(highest)
            if not self.dark:
                check_brightness(highest, where, white_of_type(stored))
        if class_names is not None:
            class_names = names_by_label(class_names, where)
        if None not in (class_names, num_classes) and num_classes != len(class_names or ()):
            raise DataError(
                f"{len(class_names or ())} class names for {num_classes} classes", where=where
            )
        indices, class_names = class_labels(
            labels, where=where, class_names=class_names, num_classes=num_classes
        )
        if sample_ids is None:
            sample_ids = [f"{name}/{i:06d}" for i in range(len(inputs))]
        if masks is not None and masks.shape != (len(inputs), *inputs.shape[2:]):
            raise DataError(
                f"masks have shape {tuple(masks.shape)} for inputs {tuple(inputs.shape)}",
                where=where,
                hint="Give (N, H, W)",
            )
        if len(inputs) != len(sample_ids):
            raise DataError(f"{len(inputs)} inputs but {len(sample_ids)} sample ids", where=where)
        channels, height, width = inputs.shape[1:]
        super().__init__(
            name=name,
            split=split,
            sample_ids=sample_ids,
            labels=indices,
            class_names=class_names,
            input_shape=(channels, height, width),
        )
        self._inputs = inputs
        self._masks = None if masks is None else plain_tensor(masks, "masks", where).bool()

    def _read(self, indices: list[int]) -> Tensor:
        return unit_range(self._inputs[indices], self.name)

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        return None if self._masks is None else self._masks[indices]


def load_arrays(
    path: Path,
    *,
    split: str = "test",
    labels: Path | None = None,
    num_classes: int | None = None,
    class_names: str | Sequence[str] | None = None,
    white: float | None = None,
    name: str | None = None,
) -> ArrayDataset:
    """Read ``.npz``, ``.pt`` (a dict or pair) or ``.npy`` (with a second file for the labels).

    The content is as :func:`from_content` takes it. For ``.npy`` the labels are expected beside it
    as ``NAME_labels.npy`` unless ``labels`` says where. Nothing in a file is executed.

    Raises:
        DataError: missing, damaged, or as :func:`from_content`.
        UsageError: ``labels`` for a file that has its own.
    """
    if not os.path.isfile(path):
        raise DataError("the file does not exist", where=path)
    content = read_array_file(path)
    if not isinstance(content, dict):
        beside = labels or path.with_name(f"{path.stem}_labels{path.suffix}")
        if not os.path.isfile(beside):
            raise DataError(
                "the file holds inputs and no labels",
                where=path,
                hint=f"Put the labels beside it as {beside.name}, or use an .npz with both",
            )
        content = {"inputs": content, "labels": read_array_file(beside)}
    elif labels is not None:
        raise UsageError(
            "labels= names a file beside an .npy, and this one holds its own labels",
            where=path,
            hint="Leave it out",
        )
    return from_content(
        content,
        where=path,
        name=name or path.stem,
        split=split,
        num_classes=num_classes,
        class_names=class_names,
        white=white,
    )


def from_content(
    content: Mapping[Any, Any],
    *,
    where: object,
    name: str,
    split: str = "test",
    num_classes: int | None = None,
    class_names: str | Sequence[str] | None = None,
    white: float | None = None,
) -> ArrayDataset:
    """Named arrays, tensors or lists: inputs, labels, and what else is known.

    Keys understood, in this order: ``inputs images x data X`` and ``labels targets y label Y``, or a
    pair ``x_test y_test``, ``x_train y_train`` and so on, which is that split; optionally ``ids``,
    ``class_names`` and ``masks``. Grey images may lack their axis of channels. Channels may come
    last (NHWC) when only that reading gives 1 or 3 channels.

    Raises:
        DataError: without inputs or labels, or as :class:`ArrayDataset`.
        UnknownNameError: the arrays are of splits, and none of this one.
    """
    part = _part(content, split, where)
    input_keys, label_keys = (
        (INPUT_KEYS, LABEL_KEYS) if part is None else ([f"x_{part}"], [f"y_{part}"])
    )
    inputs = array_tensor(_first(content, input_keys, "inputs", where), "inputs", where)
    if inputs.ndim == 3:
        inputs = inputs.unsqueeze(1)
    names = content.get("class_names") if class_names is None else class_names
    # A file's texts are arrays of texts or of bytes.
    if names is not None and not isinstance(names, (list, tuple, np.ndarray, Tensor)):
        names = listed_names(names)
    ids, masks = content.get("ids"), content.get("masks")
    return ArrayDataset(
        channels_first(inputs) if inputs.ndim == 4 else inputs,
        _first(content, label_keys, "labels", where),
        name=name,
        split=split,
        num_classes=num_classes,
        class_names=None if names is None else named_texts(names, "class_names", where),
        sample_ids=None if ids is None else named_texts(ids, "ids", where),
        masks=None if masks is None else array_tensor(masks, "masks", where),
        white=white,
    )


def read_array_file(path: Path) -> Any:
    """The arrays of a file by name, or its one array: npz, npy, safetensors, or torch's format.

    Raises:
        DataError: reading it would execute code, or it is damaged.
    """
    try:
        # NumPy leaves a file of its own open when an archive is damaged.
        with path.open("rb") as stream:
            if path.suffix == ".npz":
                with np.load(stream, allow_pickle=False) as archive:
                    return dict(archive)
            if path.suffix == ".npy":
                # Not `np.load`, which would also open an archive under this name.
                return np.lib.format.read_array(stream, allow_pickle=False)
            if path.suffix == ".safetensors":
                return load_file(path)
            with torch.serialization.safe_globals(_PLAIN_ARRAYS):
                content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged files make all three raise almost anything.
        raise DataError(
            f"cannot be read without executing code, or is damaged: {first_line(error)}", where=path
        ) from error
    if isinstance(content, (tuple, list)) and len(content) == 2:
        return {"inputs": content[0], "labels": content[1]}
    return content


def _part(content: Mapping[Any, Any], split: str, where: object) -> str | None:
    """``"train"`` where ``x_train`` is to be read; None: the arrays are of no split."""
    parts = sorted(key[2:] for key in map(str, content) if key.startswith("x_") and key[2:])
    if not parts or any(key in content for key in INPUT_KEYS):
        return None
    for part in SPLIT_NAMES.get(split, (split,)):
        if part in parts:
            return part
    raise UnknownNameError(
        f"no split {split!r}", where=where, hint=f"There are: {', '.join(parts)}"
    )


def named_texts(values: Any, key: str, where: object) -> list[str]:
    """A list or array of texts, or of numbers as texts.

    Raises:
        DataError: it is no such list.
    """
    try:
        listed = values
        # NumPy's texts lose the NULs that they end in.
        if not isinstance(values, (list, tuple)) or any(not isinstance(v, str) for v in values):
            listed = np.asarray(values).reshape(-1).tolist()
        if any(value is None for value in listed):
            raise ValueError("one is None")
        return [v.decode() if isinstance(v, bytes) else str(v) for v in listed]
    except (TypeError, ValueError) as error:
        raise DataError(f"{key!r} is no list of texts: {error}", where=where) from error


def _first(content: Mapping[Any, Any], keys: Sequence[str], what: str, where: object) -> Any:
    for key in keys:
        if content.get(key) is not None:
            return content[key]
    raise DataError(
        f"no {what} among the arrays {sorted(map(str, content))}",
        where=where,
        hint=f"Name them 'inputs' and 'labels' (also understood: {', '.join(keys)})",
    )
