"""torch's own data sets and loaders, pairs and dictionaries, as users have them in Python.

A sample is what ``dataset[i]`` gives, its label included. A loader adds which indices it draws;
whatever else it may do is refused by its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
    default_collate,
    default_convert,
)

from robench.datasets.arrays import ArrayDataset, from_content
from robench.datasets.base import Dataset, ImageByImage
from robench.datasets.labels import class_labels
from robench.datasets.pixels import array_tensor, channels_first, grey_mode, unit_range
from robench.datasets.preprocessing import Preprocessing
from robench.errors import DataError, RobenchError, UsageError, one_line

_FEW = 10_000
"""Up to so many samples a sampler's draws are compared more than once."""


class TorchDataset(ImageByImage):
    """A map-style ``torch.utils.data.Dataset`` of (image, label), read as it is asked for.

    Args:
        source: has ``__len__`` and ``__getitem__`` returning (image, label, …); the image is a
            tensor (C, H, W), an array (H, W, C), or a PIL image.
        chosen: the indices that are samples; None: all.
        white: the value that becomes 1.0; None: by the images' type.
        num_classes, class_names: None: by ``source.classes``, if these are the labels' names, or
            the labels.

    Raises:
        DataError: empty, or its items are not (image in [0, 1], label).
    """

    def __init__(
        self,
        source: Any,
        *,
        name: str,
        split: str,
        chosen: Sequence[int] | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        white: float | None = None,
    ) -> None:
        self._source, self._white = source, white
        self._indices = range(len(source)) if chosen is None else chosen
        self._where = f"{name} ({split})"
        self._sums: dict[int, int] = {}
        if len(self._indices) == 0:
            raise DataError("the data set is empty", where=self._where)
        known = _stored_labels(source)
        self._raw: list[Any] = []
        if known is not None:
            self._raw = [known[i] for i in self._indices]
        for index in range(len(self._indices) if known is None else 0):
            self._raw.append(self._item(index)[1])
        if class_names is None and num_classes is None:
            class_names = _class_names(source, self._indices, self._raw)
        labels, names = class_labels(
            self._raw, where=self._where, class_names=class_names, num_classes=num_classes
        )
        super().__init__(
            name=name,
            split=split,
            sample_ids=[f"{name}/{i:06d}" for i in self._indices],
            labels=labels,
            class_names=names,
            input_shape=self._shape_of_first(),
        )

    def _item(self, index: int) -> tuple[Tensor, Any]:
        """The image and its label, as the source gives them at this moment."""
        where = self._place(index)
        try:
            item = self._source[self._indices[index]]
        except RobenchError:
            raise
        except Exception as error:  # The source is anybody's code.
            raise DataError(f"cannot be read: {one_line(error)}", where=where) from error
        image, label = _pair(item, where)
        pixels = to_pixels(image, where=where, white=self._white)
        # A sample that changes would make what was found on it worthless.
        total = _checksum(pixels)
        if self._sums.setdefault(index, total) != total:
            raise DataError(
                "the sample has other pixels when it is read again",
                where=where,
                hint="Leave out random augmentation",
            )
        return pixels, label

    def _image(self, index: int) -> Tensor:
        image, label = self._item(index)
        if not np.array_equal(label, self._raw[index]):
            raise DataError(
                f"its label is {label}, and was {self._raw[index]}", where=self._place(index)
            )
        return image

    def _place(self, index: int) -> str:
        return f"{self._where} sample {self._indices[index]}"


def from_torch(
    source: Any,
    *,
    name: str | None = None,
    split: str = "test",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    white: float | None = None,
) -> Dataset:
    """What torch's users have: a ``Dataset`` or ``DataLoader`` of (image, label), or arrays.

    A pair (inputs, labels) of tensors, arrays or lists, such as a loader's batch, and a dictionary
    of them are taken as they are. A loader over a map-style data set is read through that data set:
    the samples are those that its sampler draws, in the data set's order, so shuffling does not
    move the sample ids. An iterable-style source, or a loader with an ``__iter__`` of its own, has
    no ids to ask for and is read into memory, twice, to see that it gives the same.

    Raises:
        DataError: empty; items are not (image in [0, 1], label); another reading gives others.
        UsageError: no data set; a loader that collates in its own way, draws samples more than
            once, or draws others each time.
    """
    about: dict[str, Any] = {
        "split": split,
        "num_classes": num_classes,
        "class_names": class_names,
        "white": white,
    }
    if _is_pair(source):
        source = {"inputs": source[0], "labels": source[1]}
    if isinstance(source, Mapping):
        return from_content(source, where=name or "arrays", name=name or "arrays", **about)
    about["name"] = name or "torch"
    chosen = None
    # Loaders draw from torch's generator, which is the user's: it stays where it is.
    if isinstance(source, DataLoader) and _is_read_by_index(source):
        chosen, source = _drawn(source), source.dataset
    if isinstance(source, (DataLoader, IterableDataset)):
        with torch.random.fork_rng(devices=[]):
            return _materialised(source, **about)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise UsageError(
            f"{type(source).__name__} is no data set",
            hint="Give a torch Dataset or DataLoader, or tensors to ArrayDataset",
        )
    return TorchDataset(source, chosen=chosen, **about)


def to_pixels(image: Any, *, where: object, white: float | None = None) -> Tensor:
    """A tensor (C, H, W) or (H, W), an array, or a PIL image → float32 (C, H, W) in [0, 1].

    Arrays have their channels last, tensors first, unless only the other reading gives 1 or 3.

    Raises:
        DataError: it is no image, or as :func:`robench.datasets.pixels.unit_range`.
    """
    if isinstance(image, Image.Image):
        preparation = Preprocessing(channels=1 if grey_mode(image) else 3, white=white)
        try:
            return preparation.image(image)
        except DataError as error:
            raise DataError(error.what, where=where, hint=error.hint) from error
        except Exception as error:  # Decoders of damaged images raise almost anything.
            raise DataError(f"cannot be read: {one_line(error)}", where=where) from error
    if isinstance(image, (str, bytes, Mapping)) or not hasattr(image, "__len__"):
        raise DataError(f"{type(image).__name__} is no image", where=where)
    pixels = array_tensor(image, type(image).__name__, where)
    if pixels.ndim == 2:
        pixels = pixels.unsqueeze(0)
    elif pixels.ndim == 3:
        pixels = channels_first(pixels, last=not isinstance(image, Tensor))
    else:
        raise DataError(
            f"an image of shape {tuple(pixels.shape)}", where=where, hint="Give (C, H, W)"
        )
    return unit_range(pixels, where, white)


def _is_pair(source: Any) -> bool:
    """(inputs, labels): two arrays, of which the first holds images."""
    return (
        isinstance(source, (tuple, list))
        and len(source) == 2
        and isinstance(source[0], (Tensor, np.ndarray))
        and source[0].ndim >= 3
        and isinstance(source[1], (Tensor, np.ndarray, list, tuple))
    )


def _pair(item: Any, where: object) -> tuple[Any, Any]:
    """(image, label) of an item; of a label that is a tensor, its array."""
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError("the item is not (image, label)", where=where)
    label = item[1]
    return item[0], label.detach().cpu().numpy() if isinstance(label, Tensor) else label


def _checksum(pixels: Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels.numpy()))


def _stored_labels(source: Any) -> Sequence[Any] | None:
    """The labels of a data set of torchvision's that are sure to be those of its items.

    Others are read item by item: what a subclass, a wrapper or a target_transform makes of a label
    stands nowhere else.
    """
    kind = getattr(getattr(type(source), "__getitem__", None), "__module__", None) or ""
    joint = type(getattr(source, "transforms", None)).__name__
    if (
        not kind.startswith("torchvision.datasets.")
        or getattr(source, "target_transform", None) is not None
        or joint not in ("NoneType", "StandardTransform")
    ):
        return None
    if hasattr(source, "samples"):
        return [label for _, label in source.samples]
    found = getattr(source, "targets", getattr(source, "labels", None))
    return found.tolist() if isinstance(found, (Tensor, np.ndarray)) else found


def _class_names(source: Any, indices: Sequence[int], labels: Sequence[Any]) -> list[str] | None:
    """``source.classes``, through subsets, unless labels are mapped to others."""
    while isinstance(source, Subset):
        indices, source = [source.indices[i] for i in indices], source.dataset
    classes, targets = getattr(source, "classes", None), getattr(source, "targets", None)
    if classes is None:
        return None
    if targets is not None and not np.array_equal([targets[i] for i in indices], labels):
        return None
    return [str(name) for name in classes]


def _is_read_by_index(loader: DataLoader[Any]) -> bool:
    own = type(loader).__iter__ is not DataLoader.__iter__
    return not own and not isinstance(loader.dataset, IterableDataset)


def _drawn(loader: DataLoader[Any]) -> list[int] | None:
    """The indices that a loader draws, ascending; None: all of them, once each."""
    collate: Any = loader.collate_fn
    if collate is not default_collate and collate is not default_convert:
        raise UsageError(
            f"the loader's collate_fn {getattr(collate, '__name__', collate)!r} may change samples",
            hint="Do in the data set's __getitem__ what it does, or give the tensors that it makes",
        )
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(sampler).__module__ == "torch.utils.data.sampler" and hasattr(sampler, "sampler"):
        sampler = sampler.sampler
    called = f"the loader's sampler {type(sampler).__name__}"
    total = len(loader.dataset)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        draws = [list(islice(_indices(loader, called), total + 1)) for _ in range(_draws(total))]
    first = set(draws[0])
    if any(len(set(draw)) < len(draw) for draw in draws):
        raise UsageError(f"{called} draws samples more than once", hint="Give the data set itself")
    if any(set(draw) != first for draw in draws):
        raise UsageError(
            f"{called} draws other samples each time",
            hint="Give the data set itself, or a Subset of it; drop_last with shuffling is such",
        )
    outside = sorted(i for i in first if not 0 <= i < total)
    if outside:
        raise UsageError(f"{called} draws index {outside[0]} of {total} samples")
    return None if len(first) == total else sorted(first)


def _draws(total: int) -> int:
    return 8 if total <= _FEW else 2


def _indices(loader: DataLoader[Any], called: str) -> Iterator[int]:
    for chunk in loader.sampler if loader.batch_sampler is None else loader.batch_sampler:
        for index in [chunk] if loader.batch_sampler is None else chunk:
            try:
                yield int(index)
            except (TypeError, ValueError) as error:
                raise UsageError(f"{called} draws {index!r}, which is no index") from error


def _materialised(
    source: Any,
    *,
    name: str,
    split: str,
    num_classes: int | None,
    class_names: Sequence[str] | None,
    white: float | None,
) -> ArrayDataset:
    where = f"{name} ({split})"
    images: list[Tensor] = []
    labels: list[Any] = []
    for pixels, label in _samples(source, where, white):
        images.append(pixels)
        labels.append(label)
    if not images:
        raise DataError("the data set is empty", where=where)
    again = _samples(source, where, white)
    for image, label, (pixels, its) in zip_longest(images, labels, again, fillvalue=(None, None)):
        if pixels is None or not (torch.equal(image, pixels) and np.array_equal(label, its)):
            raise DataError(
                "gives other samples, or another order, when it is read again",
                where=where,
                hint="Leave out shuffling and random augmentation, or give the tensors themselves",
            )
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(f"images have the shapes {sorted(shapes)[:3]}", where=where)
    return ArrayDataset(
        torch.stack(images),
        labels,
        name=name,
        split=split,
        num_classes=num_classes,
        class_names=class_names,
    )


def _samples(source: Any, where: str, white: float | None) -> Iterator[tuple[Tensor, Any]]:
    """float32 (C, H, W) and the label of each, whether an iteration gives them singly or not."""
    batched = isinstance(source, DataLoader) and source.batch_size is not None
    for position, item in enumerate(source):
        place = f"{where} item {position}"
        image, label = _pair(item, place)
        if not (batched or getattr(image, "ndim", 0) == 4):
            yield to_pixels(image, where=place, white=white), label
            continue
        if len(image) != len(label):
            raise DataError(f"{len(image)} images and {len(label)} labels", where=place)
        for one, its in zip(image, label, strict=True):
            yield to_pixels(one, where=place, white=white), its
