"""What every data set offers: stable ids, labels, batches by index, masks where known, splits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.datasets.pixels import check_brightness, check_unit_range, is_dark
from robench.datasets.published_corruptions import PublishedCorruptions
from robench.errors import DataError, UsageError
from robench.records import DatasetSpec, PreprocessingSpec

Indices = Sequence[int] | Tensor

SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val"), "test": ("test", "val")}
"""What folders and arrays of a split are called, best first. Some sets publish train and val only."""

_FINGERPRINT_BATCH = 256


def sample_order(sample_ids: Sequence[str], salt: str = "") -> list[int]:
    """Indices in the order of SHA-256 of ``salt + id``.

    A shuffle that needs no generator: it is the same on every machine and in every version, and
    a sample keeps its place relative to the others when samples are added or removed.
    """
    keys = [hashlib.sha256((salt + name).encode()).digest() for name in sample_ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def _is_text(name: str) -> bool:
    """Whether it is Unicode: bytes of a file's name that are none became lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Dataset(ABC):
    """A finite, ordered set of labelled images.

    Args:
        name: the data set's name in cards, records and leaderboards.
        split: which part of it this is (``"test"``).
        sample_ids: one id a sample; unique, independent of machine and order of reading.
        labels: int64 (N,), each in ``[0, len(class_names))``.
        class_names: one name a class, in the order of the labels.
        input_shape: (C, H, W) of every sample.
        preprocessing: what was done to images of other sizes; None: nothing.

    Raises:
        DataError: no samples, ids or names of classes that repeat or are no Unicode, images without
            pixels, fewer than two classes, or labels out of range.
    """

    def __init__(
        self,
        *,
        name: str,
        split: str,
        sample_ids: Sequence[str],
        labels: Tensor,
        class_names: Sequence[str],
        input_shape: tuple[int, int, int],
        preprocessing: PreprocessingSpec | None = None,
    ) -> None:
        where = f"{name} ({split})"
        if len(sample_ids) == 0:
            raise DataError("the data set is empty", where=where)
        if labels.shape != (len(sample_ids),):
            raise DataError(
                f"{len(sample_ids)} samples but labels of shape {tuple(labels.shape)}",
                where=where,
                hint="Give one class index for each sample",
            )
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DataError(
                f"labels are {labels.dtype}", where=where, hint="Give integer class indices"
            )
        if len(set(sample_ids)) != len(sample_ids):
            raise DataError("sample ids repeat", where=where)
        for what, names in (("sample id", sample_ids), ("name of a class", class_names)):
            if strange := [name for name in names if not _is_text(name)]:
                raise DataError(
                    f"the {what} {strange[0]!r} is no valid Unicode",
                    where=where,
                    hint="Give it another name",
                )
        if 0 in input_shape:
            raise DataError(f"images of shape {input_shape} have no pixels", where=where)
        if len(class_names) < 2:
            raise DataError(
                f"{len(class_names)} class(es); classification needs two or more", where=where
            )
        twice = [name for name, times in Counter(class_names).items() if times > 1]
        if twice:
            raise DataError(
                f"{len(twice)} names of classes repeat: {twice[0]!r}",
                where=where,
                hint="Give each class a name of its own, in the order of the labels",
            )
        labels = labels.to(torch.int64)
        outside = (labels < 0) | (labels >= len(class_names))
        if outside.any():
            first = int(outside.nonzero()[0])
            raise DataError(
                f"label {int(labels[first])} of sample {sample_ids[first]!r} is outside "
                f"0..{len(class_names) - 1} ({int(outside.sum())} such)",
                where=where,
                hint="Labels count from 0; check num_classes",
            )
        self.name = name
        self.split = split
        self.sample_ids = sample_ids
        self.labels = labels
        self.class_names = tuple(class_names)
        self.input_shape = input_shape
        self.preprocessing = preprocessing

    dark = False
    """Whether the samples are floats so dark that white may be another value than 1"""
    reads_alike = False
    """Whether a sample that is read again is sure to be the same pixels."""
    published: PublishedCorruptions | None = None
    """The samples as common corruptions left them, where a folder of such images is named"""

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each has samples here."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.sample_ids)

    @abstractmethod
    def _read(self, indices: list[int]) -> Tensor:
        """Inputs of valid ``indices``: float32 (len(indices), C, H, W) in [0, 1]."""

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        return None

    def batch(self, indices: Indices) -> Tensor:
        """Inputs of the samples at ``indices``, float32 (N, C, H, W) in [0, 1].

        Reads just these samples.

        Raises:
            UsageError: an index is out of range.
            DataError: a sample cannot be read, has another shape or type, or is not finite and inside
                [0, 1].
        """
        chosen = self._checked(indices)
        inputs = self._read(chosen)
        where = f"{self.name} ({self.split})"
        if inputs.dtype != torch.float32 or inputs.shape != (len(chosen), *self.input_shape):
            raise DataError(
                f"{len(chosen)} samples of {self.input_shape} are read as {inputs.dtype} "
                f"{tuple(inputs.shape)}",
                where=where,
                hint="Give float32 (N, C, H, W) in [0, 1]",
            )
        check_unit_range(inputs, where)
        return inputs

    def masks(self, indices: Indices) -> Tensor | None:
        """Where the labelled object is, bool (N, H, W); None: this data set does not know.

        A sample whose object is unknown in a set that has masks gets an all-False mask.

        Raises:
            UsageError: an index is out of range.
            DataError: a mask cannot be read.
        """
        return self._read_masks(self._checked(indices))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, labels and float32 pixels, in order of ids; reads in batches."""
        return self._digest()

    def check_reads_alike(self) -> None:
        """Read every sample twice, unless it is sure to be the same again.

        Raises:
            DataError: samples change from one reading to the next.
        """
        if not self.reads_alike and self._digest() != self.fingerprint:
            raise DataError(
                "a sample that is read again has other pixels",
                where=f"{self.name} ({self.split})",
                hint="Leave out random augmentation: samples have to stay the same while they are "
                "attacked",
            )

    def _digest(self) -> str:
        digest = hashlib.sha256()
        # The header keeps sets of other shapes or classes apart even if their bytes agree.
        digest.update(f"{self.input_shape} {self.num_classes} {len(self)}\n".encode())
        for chosen in self._batches_by_id():
            pixels = self.batch(chosen).numpy().astype(np.dtype("<f4"), copy=False)
            for row, index in enumerate(chosen):
                digest.update(f"{self.sample_ids[index]}\0{int(self.labels[index])}\0".encode())
                digest.update(np.ascontiguousarray(pixels[row]).tobytes())
        return digest.hexdigest()

    @cached_property
    def masks_fingerprint(self) -> str | None:
        """SHA-256 over the objects' masks, in order of ids; None: there are none."""
        digest = hashlib.sha256()
        for chosen in self._batches_by_id():
            masks = self.masks(chosen)
            if masks is None:
                return None
            digest.update(np.packbits(masks.numpy()).tobytes())
        return digest.hexdigest()

    def _batches_by_id(self) -> Iterator[list[int]]:
        order = sorted(range(len(self)), key=self.sample_ids.__getitem__)
        for start in range(0, len(order), _FINGERPRINT_BATCH):
            yield order[start : start + _FINGERPRINT_BATCH]

    def spec(self) -> DatasetSpec:
        """What a record says about the samples used."""
        return DatasetSpec(
            name=self.name,
            split=self.split,
            fingerprint=self.fingerprint,
            masks=self.masks_fingerprint,
            n=len(self),
            num_classes=self.num_classes,
            class_names=self.class_names,
            preprocessing=self.preprocessing,
        )

    def subset(self, n: int) -> Dataset:
        """``n`` samples, the same ones always; a smaller subset lies inside every larger one.

        The samples are chosen by the hash of their ids and keep the order they have here.

        Raises:
            UsageError: ``n`` is not between 1 and the number of samples.
        """
        if not 1 <= n <= len(self):
            raise UsageError(
                f"n = {n}, but {self.name} ({self.split}) has {len(self)} samples",
                hint=f"Choose n from 1 to {len(self)}",
            )
        if n == len(self):
            return self
        return Subset(self, sorted(sample_order(self.sample_ids)[:n]))

    def _checked(self, indices: Indices) -> list[int]:
        values = indices.tolist() if isinstance(indices, Tensor) else [int(i) for i in indices]
        for value in values:
            if not 0 <= value < len(self):
                raise UsageError(
                    f"sample index {value} is outside 0..{len(self) - 1}",
                    where=f"{self.name} ({self.split})",
                )
        return values


class Subset(Dataset):
    """Some samples of another data set, in the order given; reads through to it.

    Args:
        parent: the data set that holds the samples.
        indices: positions in the parent.
        split: another name for the split, if this part has one.

    Raises:
        DataError: no indices are given.
    """

    def __init__(self, parent: Dataset, indices: Sequence[int], *, split: str | None = None):
        chosen = list(indices)
        super().__init__(
            name=parent.name,
            split=parent.split if split is None else split,
            sample_ids=[parent.sample_ids[i] for i in chosen],
            labels=parent.labels[torch.tensor(chosen, dtype=torch.int64)],
            class_names=parent.class_names,
            input_shape=parent.input_shape,
            preprocessing=parent.preprocessing,
        )
        self.reads_alike = parent.reads_alike
        self.dark = parent.dark
        self.published = None if parent.published is None else parent.published.at(chosen)
        self._parent = parent
        self._indices = chosen

    def _read(self, indices: list[int]) -> Tensor:
        return self._parent.batch([self._indices[i] for i in indices])

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        return self._parent.masks([self._indices[i] for i in indices])


class ImageByImage(Dataset):
    """A data set whose images are read one at a time; all have the shape of the first.

    Args:
        white: the stored value that becomes 1.0, if somebody said it; None: images' types and formats
            say it, and images that are dark throughout are in doubt.
        about: as for :class:`Dataset`, without ``input_shape``.

    Raises:
        DataError: as :class:`Dataset`; an image that cannot be read; no image is bright.
    """

    def __init__(self, *, white: float | None, **about: Any) -> None:
        first = self._image(0)
        super().__init__(input_shape=(first.shape[0], first.shape[1], first.shape[2]), **about)
        if white is None:
            self._check_brightness(float(first.max()) if first.numel() else 0.0)

    def _check_brightness(self, highest: float) -> None:
        """``highest`` is that of the first image; as a rule no other has to be read."""
        for index in range(1, len(self)):
            if not is_dark(highest):
                return
            highest = max(highest, float(self._image(index).max()))
        check_brightness(highest, f"{self.name} ({self.split})")

    @abstractmethod
    def _image(self, index: int) -> Tensor:
        """One image, float32 (C, H, W) in [0, 1]."""

    @abstractmethod
    def _place(self, index: int) -> object:
        """Where it comes from, for errors."""

    def _read(self, indices: list[int]) -> Tensor:
        batch = torch.empty((len(indices), *self.input_shape), dtype=torch.float32)
        for row, index in enumerate(indices):
            image = self._image(index)
            if tuple(image.shape) != self.input_shape:
                raise DataError(
                    f"the image has shape {tuple(image.shape)}, the first one {self.input_shape}",
                    where=self._place(index),
                    hint="Bring all to one size, as with size=, or resize= and crop=",
                )
            batch[row] = image
        return batch


def stratified_choice(
    sample_ids: list[str], labels: list[int], n: int, *, salt: str = ""
) -> list[int]:
    """``n`` indices, ascending, with each class in proportion to its size.

    The largest-remainder method shares ``n`` among the classes; within a class the hash of the
    salted ids decides. No random generator takes part, so a library's new version changes
    nothing.

    Raises:
        UsageError: ``n`` is not between 0 and the number of samples.
    """
    total = len(sample_ids)
    if not 0 <= n <= total:
        raise UsageError(f"cannot choose {n} of {total} samples")
    members: dict[int, list[int]] = {}
    for index in sample_order(sample_ids, salt):
        members.setdefault(labels[index], []).append(index)
    # Integer arithmetic: remainders compare exactly.
    share = {label: n * len(rows) // total for label, rows in members.items()}
    by_remainder = sorted(members, key=lambda label: (-(n * len(members[label]) % total), label))
    for label in by_remainder[: n - sum(share.values())]:
        share[label] += 1
    return sorted(i for label, rows in members.items() for i in rows[: share[label]])


def hold_out(
    dataset: Dataset, n: int, *, split: str = "validation", salt: str = "validation/"
) -> tuple[Dataset, Dataset]:
    """Part ``dataset`` into (the rest, ``n`` held-out samples), stratified and fixed.

    Raises:
        UsageError: ``n`` leaves either part empty.
    """
    if not 1 <= n < len(dataset):
        raise UsageError(
            f"cannot hold out {n} of {len(dataset)} samples",
            where=f"{dataset.name} ({dataset.split})",
            hint=f"Choose from 1 to {len(dataset) - 1}",
        )
    held = stratified_choice(list(dataset.sample_ids), dataset.labels.tolist(), n, salt=salt)
    apart = set(held)
    rest = [i for i in range(len(dataset)) if i not in apart]
    return Subset(dataset, rest), Subset(dataset, held, split=split)
