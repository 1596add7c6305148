"""Data sets in memory: tensors, NumPy and torch files, and torch's own data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from robench.datasets.base import Dataset, ImageByImage
from robench.errors import DataError, UsageError, first_line

ARRAY_SUFFIXES = (".npz", ".npy", ".pt", ".pth")

_INPUT_KEYS = ("inputs", "images", "x_test", "x", "data", "X")
_LABEL_KEYS = ("labels", "targets", "y_test", "y", "label", "Y")


class ArrayDataset(Dataset):
    """Inputs and labels that are tensors already.

    Args:
        inputs: (N, C, H, W); uint8 (divided by 255 as it is read) or floating point in [0, 1].
        labels: integers (N,).
        name, split: as it reads in records.
        num_classes: number of classes; None: from ``class_names``, else the largest label + 1.
        class_names: one a class; default ``"0"``, ``"1"``, …
        sample_ids: one a sample; default ``name/000000``, …
        masks: bool (N, H, W) where the objects are, if known.

    Raises:
        DataError: empty, of another shape, not finite or outside [0, 1], or bad labels.
    """

    def __init__(
        self,
        inputs: Tensor,
        labels: Tensor,
        *,
        name: str = "arrays",
        split: str = "test",
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        sample_ids: Sequence[str] | None = None,
        masks: Tensor | None = None,
    ) -> None:
        where = f"{name} ({split})"
        if inputs.ndim != 4:
            raise DataError(
                f"inputs have shape {tuple(inputs.shape)}",
                where=where,
                hint="Give (N, C, H, W): samples, channels, height, width",
            )
        if inputs.dtype != torch.uint8 and not inputs.is_floating_point():
            raise DataError(
                f"inputs are {inputs.dtype}", where=where, hint="Give uint8, or floats in [0, 1]"
            )
        if inputs.is_floating_point():
            check_range(inputs, where)
            inputs = inputs.to(torch.float32)
        if class_names is None:
            class_names = numbered_classes(labels, num_classes)
        elif num_classes is not None and num_classes != len(class_names):
            raise DataError(
                f"{len(class_names)} class names for {num_classes} classes", where=where
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
            labels=labels.cpu(),
            class_names=class_names,
            input_shape=(channels, height, width),
        )
        self._inputs = inputs.detach().cpu()
        self._masks = None if masks is None else masks.detach().cpu().bool()

    def _read(self, indices: list[int]) -> Tensor:
        return to_unit_range(self._inputs[indices])

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        return None if self._masks is None else self._masks[indices]


class TorchDataset(ImageByImage):
    """A map-style ``torch.utils.data.Dataset`` of (image, label), read as it is asked for.

    Args:
        source: has ``__len__`` and ``__getitem__`` returning (image, label, …); the image is a
            tensor (C, H, W), uint8 or floating point in [0, 1], or a PIL image.
        labels: int64 (N,), read beforehand.
    """

    def __init__(
        self,
        source: Any,
        labels: Tensor,
        *,
        name: str,
        split: str,
        class_names: Sequence[str],
    ) -> None:
        self._source = source
        self._where = f"{name} ({split})"
        if len(source) == 0:
            raise DataError("the data set is empty", where=self._where)
        super().__init__(
            name=name,
            split=split,
            sample_ids=[f"{name}/{i:06d}" for i in range(len(source))],
            labels=labels,
            class_names=class_names,
            input_shape=self._shape_of_first(),
        )

    def _image(self, index: int) -> Tensor:
        image = to_tensor(self._source[index][0], where=self._place(index))
        check_range(image, self._place(index))
        return image

    def _place(self, index: int) -> str:
        return f"{self._where} sample {index}"


def from_torch(
    source: Any,
    *,
    name: str = "torch",
    split: str = "test",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Wrap a torch ``Dataset`` or ``DataLoader`` of (image, label).

    A loader over a map-style data set is read through that data set, in its own order, so a
    shuffling sampler does not move the sample ids. An iterable-style source has no ids to ask
    for and is read into memory once.

    Raises:
        DataError: empty, or its items are not (image in [0, 1], label).
    """
    if isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset):
        source = source.dataset
    if isinstance(source, (DataLoader, IterableDataset)):
        return _materialised(source, name, split, num_classes, class_names)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise UsageError(
            f"{type(source).__name__} is no data set",
            hint="Give a torch Dataset or DataLoader, or tensors to ArrayDataset",
        )
    if class_names is None and hasattr(source, "classes") and num_classes is None:
        class_names = [str(label) for label in source.classes]
    targets = getattr(source, "targets", None)
    if targets is None:
        targets = [int(_pair(source[i], f"{name} sample {i}")[1]) for i in range(len(source))]
    labels = torch.as_tensor(targets)
    if class_names is None:
        class_names = numbered_classes(labels, num_classes)
    return TorchDataset(source, labels, name=name, split=split, class_names=class_names)


def load_arrays(
    path: Path,
    *,
    split: str = "test",
    labels: Path | None = None,
    num_classes: int | None = None,
    name: str | None = None,
) -> ArrayDataset:
    """Read ``.npz``, ``.pt`` (a dict or pair) or ``.npy`` (with a second file for the labels).

    Keys understood, in this order: ``inputs images x_test x data X`` and ``labels targets y_test
    y label Y``; optionally ``ids``, ``class_names`` and ``masks``. Channels may come last (NHWC)
    when only that reading gives 1 or 3 channels. For ``.npy`` the labels are expected beside it
    as ``NAME_labels.npy`` unless ``labels`` says where. Nothing in a file is executed.

    Raises:
        DataError: missing, damaged, or without inputs and labels.
    """
    if not path.is_file():
        raise DataError("the file does not exist", where=path)
    content = _read_file(path)
    if not isinstance(content, dict):
        beside = labels or path.with_name(f"{path.stem}_labels{path.suffix}")
        if not beside.is_file():
            raise DataError(
                "the file holds inputs and no labels",
                where=path,
                hint=f"Put the labels beside it as {beside.name}, or use an .npz with both",
            )
        content = {"inputs": content, "labels": _read_file(beside)}
    values = {key: _as_tensor(value, key, path) for key, value in content.items()}
    inputs = _first(values, _INPUT_KEYS, "inputs", path)
    found = _first(values, _LABEL_KEYS, "labels", path)
    return ArrayDataset(
        _channels_first(inputs, path),
        found.flatten() if found.ndim == 2 and found.shape[1] == 1 else found,
        name=name or path.stem,
        split=split,
        num_classes=num_classes,
        class_names=values.get("class_names"),
        sample_ids=values.get("ids"),
        masks=values.get("masks"),
    )


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 → float32 in [0, 1]; floating point → float32."""
    floats = pixels.to(torch.float32)
    return floats.div_(255) if pixels.dtype == torch.uint8 else floats


def to_tensor(image: Any, *, where: str) -> Tensor:
    """A tensor (C, H, W) or (H, W), an array, or a PIL image → float32 (C, H, W)."""
    if isinstance(image, Tensor):
        pixels = image
    else:
        # PIL images expose the array interface with channels last.
        array = np.array(image)
        if array.dtype == object or array.ndim not in (2, 3):
            raise DataError(f"{type(image).__name__} is no image", where=where)
        pixels = torch.from_numpy(array)
        if pixels.ndim == 3:
            pixels = pixels.permute(2, 0, 1)
    if pixels.ndim == 2:
        pixels = pixels.unsqueeze(0)
    if pixels.ndim != 3:
        raise DataError(f"an image of shape {tuple(pixels.shape)}", where=where)
    return to_unit_range(pixels)


def check_range(inputs: Tensor, where: str) -> None:
    """Refuse what is not finite or outside [0, 1] with a DataError."""
    if inputs.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(inputs.detach()))
    if not (low >= 0 and high <= 1):  # also catches NaN, which aminmax passes on
        hint = (
            "Divide by 255" if 1 < high <= 255 and low >= 0 else "Bring the inputs to [0, 1] first"
        )
        raise DataError(
            f"inputs range over [{low:.4g}, {high:.4g}], not [0, 1]",
            where=where,
            hint=f"{hint}; a normalisation belongs to the model's card",
        )


def numbered_classes(labels: Tensor, num_classes: int | None) -> list[str]:
    """Class names ``"0"``, ``"1"``, …; of ``num_classes`` None, up to the largest label."""
    if num_classes is None:
        num_classes = int(labels.max()) + 1 if labels.numel() else 0
    return [str(i) for i in range(num_classes)]


def _pair(item: Any, where: str) -> tuple[Any, Tensor]:
    try:
        return item[0], torch.as_tensor(item[1])
    except (TypeError, IndexError, KeyError, ValueError, RuntimeError) as error:
        raise DataError("the item is not (image, label)", where=where) from error


def _materialised(
    source: Any,
    name: str,
    split: str,
    num_classes: int | None,
    class_names: Sequence[str] | None,
) -> ArrayDataset:
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for position, item in enumerate(source):
        where = f"{name} {position}"
        image, label = _pair(item, where)
        if label.ndim == 0:
            images.append(to_tensor(image, where=where).unsqueeze(0))
        else:
            images.append(to_unit_range(torch.as_tensor(image)))
        labels.append(label.reshape(-1))
    if not images:
        raise DataError("the data set is empty", where=f"{name} ({split})")
    return ArrayDataset(
        torch.cat(images),
        torch.cat(labels),
        name=name,
        split=split,
        num_classes=num_classes,
        class_names=class_names,
    )


def _read_file(path: Path) -> Any:
    """The arrays of a file by name, or its one array."""
    try:
        # NumPy leaves a file of its own open when an archive is damaged.
        with path.open("rb") as stream:
            if path.suffix == ".npz":
                with np.load(stream, allow_pickle=False) as archive:
                    return dict(archive)
            if path.suffix == ".npy":
                # Not `np.load`, which would also open an archive under this name.
                return np.lib.format.read_array(stream, allow_pickle=False)
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged files make all three raise almost anything.
        raise DataError(
            f"cannot be read without executing code, or is damaged: {first_line(error)}", where=path
        ) from error
    if isinstance(content, (tuple, list)) and len(content) == 2:
        return {"inputs": content[0], "labels": content[1]}
    return content


def _as_tensor(value: Any, key: str, path: Path) -> Any:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        return [str(v) for v in value.astype(str).tolist()]
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return list(value)
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{key!r} is no array: {error}", where=path) from error


def _first(values: dict[str, Any], keys: Sequence[str], what: str, path: Path) -> Tensor:
    for key in keys:
        value = values.get(key)
        if isinstance(value, Tensor):
            return value
    raise DataError(
        f"no {what} among the arrays {sorted(map(str, values))}",
        where=path,
        hint=f"Name them 'inputs' and 'labels' (also understood: {', '.join(keys)})",
    )


def _channels_first(inputs: Tensor, path: Path) -> Tensor:
    if inputs.ndim == 3:
        return inputs.unsqueeze(1)
    if inputs.ndim == 4 and inputs.shape[1] not in (1, 3) and inputs.shape[3] in (1, 3):
        return inputs.permute(0, 3, 1, 2)
    if inputs.ndim != 4:
        raise DataError(
            f"inputs have shape {tuple(inputs.shape)}", where=path, hint="Give (N, C, H, W)"
        )
    return inputs
