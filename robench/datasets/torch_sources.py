"""torch's own data sets and loaders, pairs and dictionaries, as users have them in Python.

A sample is what ``dataset[i]`` gives, its label included. A loader adds which indices it draws. One
that collates in its own way, or iterates in its own way, is read through twice.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    default_collate,
    default_convert,
)

from robench.datasets.arrays import ArrayDataset, from_content
from robench.datasets.base import Dataset, ImageByImage
from robench.datasets.hugging_face import HuggingFaceDataset
from robench.datasets.labels import class_labels, names_by_label
from robench.datasets.pixels import check_brightness, plain_tensor
from robench.datasets.preprocessing import Preprocessing, to_pixels
from robench.datasets.torch_wrappers import names_of_classes, refuse_repeated, stated_names
from robench.errors import DataError, UsageError, data_errors

_FEW = 10_000
"""Up to so many samples a sampler's draws are compared more than once."""


class TorchDataset(ImageByImage):
    """A map-style ``torch.utils.data.Dataset`` of (image, label), read as it is asked for.

    Args:
        source: has ``__len__`` and ``__getitem__`` returning (image, label, …); the image is a
            tensor (C, H, W), an array (H, W, C), or a PIL image.
        chosen: the indices that are samples; None: all.
        white: the value that becomes 1.0; None: by the images' type.
        num_classes, class_names: None: by ``source.classes`` or ``source.class_to_idx``, if these are
            the labels' names, or the labels.

    Raises:
        DataError: empty; its items are not (image in [0, 1], label), or two are one sample.
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
        refuse_repeated(source, self._indices, self._where)
        known = _stored_labels(source)
        if known is not None and len(known) < max(self._indices) + 1:
            raise DataError(
                f"{len(known)} labels for {max(self._indices) + 1} samples", where=self._where
            )
        self._raw: list[Any] = []
        if known is not None:
            self._raw = [known[i] for i in self._indices]
        for index in range(len(self._indices) if known is None else 0):
            self._raw.append(self._item(index)[1])
        if class_names is None and (num_classes is None or _has_text(self._raw)):
            class_names = names_of_classes(source, self._indices, self._raw)
        labels, names = class_labels(
            self._raw, where=self._where, class_names=class_names, num_classes=num_classes
        )
        super().__init__(
            name=name,
            split=split,
            sample_ids=[f"{name}/{i:06d}" for i in self._indices],
            labels=labels,
            class_names=names,
            white=white,
        )

    def _item(self, index: int) -> tuple[Tensor, Any]:
        """The image and its label, as the source gives them at this moment."""
        where = self._place(index)
        with data_errors(where):
            image, label = _pair(self._source[self._indices[index]], where)
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

    A pair (inputs, labels) of tensors, arrays or lists, such as a loader's batch, a dictionary of
    them, and a ``datasets.Dataset`` of the Hub's package are taken as they are. A loader over a
    map-style data set is read through that data set: the samples are those that its sampler draws,
    in the data set's order, so shuffling does not move the sample ids. An iterable-style source, or a
    loader with a ``collate_fn`` or an ``__iter__`` of its own, has no ids to ask for: its batches are read
    into memory, twice, to see that they are the same.

    Raises:
        DataError: empty; items are not (image in [0, 1], label); another reading gives others; the
            source's own code fails.
        UsageError: no data set; a loader that draws samples more than once, or others each time.
    """
    with data_errors(name or type(source).__name__):
        if class_names is not None:
            class_names = names_by_label(class_names, "class_names")
        return _from_torch(source, name, split, num_classes, class_names, white)


def _from_torch(
    source: Any,
    name: str | None,
    split: str,
    num_classes: int | None,
    class_names: Sequence[str] | None,
    white: float | None,
) -> Dataset:
    about: dict[str, Any] = {
        "split": split,
        "num_classes": num_classes,
        "class_names": class_names,
        "white": white,
    }
    # Two samples are tuples themselves, so that an image at the second place is no label.
    if isinstance(source, (tuple, list)) and len(source) == 2 and not _are_samples(*source):
        inputs, labels = source
        if isinstance(inputs, (list, tuple)) and not inputs:
            raise DataError("the data set is empty", where=name)
        if _holds_images(inputs):
            if len(inputs) != len(labels):
                raise DataError(f"{len(inputs)} images and {len(labels)} labels", where=name)
            source = list(zip(inputs, labels, strict=True))
        elif _axes(inputs) >= 3:
            source = {"inputs": inputs, "labels": labels}
    if isinstance(source, Mapping):
        return from_content(source, where=name or "arrays", name=name or "arrays", **about)
    if hasattr(source, "select_columns") and hasattr(source, "features"):
        return _hub_rows(source, name or "hub", **about)
    about["name"] = name or "torch"
    chosen = None
    # Loaders draw from torch's generator, which is the user's: it stays where it is.
    if isinstance(source, DataLoader) and _is_read_by_index(source):
        chosen = _drawn(source)
        # What collates in another way than torch may change samples: its batches are read.
        collate: Any = source.collate_fn
        if collate is default_collate or collate is default_convert:
            source = source.dataset
    if isinstance(source, (DataLoader, IterableDataset)):
        with torch.random.fork_rng(devices=[]):
            return _materialised(source, **about)
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise UsageError(
            f"{type(source).__name__} is no data set",
            hint="Give a torch Dataset or DataLoader, or tensors to ArrayDataset",
        )
    return TorchDataset(source, chosen=chosen, **about)


def _axes(array: Any) -> int:
    """Of an array, an image, or lists of them, as their first items have it."""
    if isinstance(array, (list, tuple)) and len(array):
        return 1 + _axes(array[0])
    return 2 if isinstance(array, Image.Image) else int(getattr(array, "ndim", 0))


def _are_samples(one: Any, other: Any) -> bool:
    """Whether two things are (image, label) each, and not images and their labels."""
    return isinstance(one, (list, tuple)) and _axes(other) > 2


def _holds_images(inputs: Any) -> bool:
    """Whether it is a list of images as Pillow has them, which are read one by one."""
    return isinstance(inputs, (list, tuple)) and any(isinstance(i, Image.Image) for i in inputs)


def _hub_rows(rows: Any, name: str, white: float | None, **about: Any) -> HuggingFaceDataset:
    preprocessing = Preprocessing.of(white=white)
    found = HuggingFaceDataset(rows, name=name, preprocessing=preprocessing, **about)
    # Unlike what the Hub gives, these rows may have a transformation of the user's.
    found.reads_alike = False
    return found


def _pair(item: Any, where: object) -> tuple[Any, Any]:
    """(image, label) of an item; of a label that is a tensor, its array."""
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        raise DataError("the item is not (image, label)", where=where)
    label = item[1]
    if isinstance(label, Tensor):
        plain = plain_tensor(label, "the label", where)
        label = (plain.float() if plain.is_floating_point() else plain).numpy()
    return item[0], label


def _has_text(labels: Sequence[Any]) -> bool:
    return any(isinstance(label, str) for label in labels)


def _checksum(pixels: Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels.numpy()).data)


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


def _is_read_by_index(loader: DataLoader[Any]) -> bool:
    own = type(loader).__iter__ is not DataLoader.__iter__
    return not own and not isinstance(loader.dataset, IterableDataset)


def _drawn(loader: DataLoader[Any]) -> list[int] | None:
    """The indices that a loader draws, ascending; None: all of them, once each."""
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if type(sampler).__module__ == "torch.utils.data.sampler" and hasattr(sampler, "sampler"):
        sampler = sampler.sampler
    called = f"the loader's sampler {type(sampler).__name__}"
    whole: Any = loader.dataset
    total = len(whole)
    if type(sampler) is SequentialSampler and sampler.data_source is whole:
        chunks: Any = loader.batch_sampler
        if chunks is None or (type(chunks) is BatchSampler and not chunks.drop_last):
            return None  # however long it says that it is
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
    chunks: Any = loader.batch_sampler
    if chunks is None:
        chunks = ([index] for index in loader.sampler)
    for chunk in chunks:
        for index in chunk if hasattr(chunk, "__iter__") else (chunk,):
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
    if not _gives_again(source, where, white, images, labels):
        raise DataError(
            "gives other samples, or another order, when it is read again",
            where=where,
            hint="Leave out shuffling and random augmentation, or give the tensors themselves",
        )
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise DataError(f"images have the shapes {sorted(shapes)[:3]}", where=where)
    if class_names is None and _has_text(labels):
        class_names = stated_names(source.dataset if isinstance(source, DataLoader) else source)
    if white is None:
        check_brightness(max(float(image.max()) for image in images), where)
    return ArrayDataset(
        torch.stack(images),
        labels,
        name=name,
        split=split,
        num_classes=num_classes,
        class_names=class_names,
        white=1.0,
    )


def _iterated(source: Any, where: str) -> Iterator[Any]:
    items = iter(source)
    for position in count():
        with data_errors(f"{where} item {position}"):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item


def _gives_again(
    source: Any, where: str, white: float | None, images: list[Tensor], labels: list[Any]
) -> bool:
    found = 0
    for pixels, label in _samples(source, where, white):
        if found == len(images) or not torch.equal(images[found], pixels):
            return False
        if not np.array_equal(label, labels[found]):
            return False
        found += 1
    return found == len(images)


def _samples(source: Any, where: str, white: float | None) -> Iterator[tuple[Tensor, Any]]:
    """float32 (C, H, W) and the label of each, whether an iteration gives them singly or not."""
    batched = isinstance(source, DataLoader) and source.batch_sampler is not None
    for position, item in enumerate(_iterated(source, where)):
        place = f"{where} item {position}"
        image, label = _pair(item, place)
        if not (batched or _axes(image) == 4):
            yield to_pixels(image, where=place, white=white), label
            continue
        if _axes(label) == 0 and not isinstance(label, (list, tuple)):
            raise DataError("a batch of images has one label", where=place)
        if len(image) != len(label):
            raise DataError(f"{len(image)} images and {len(label)} labels", where=place)
        for one, its in zip(image, label, strict=True):
            yield to_pixels(one, where=place, white=white), its
