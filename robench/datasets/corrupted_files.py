"""Files of corrupted images: arrays as those of CIFAR-10-C, and folders as those of ImageNet-C.

An array ``fog.npy`` has five severities one after the other, each in the order of the clean samples, and
``labels.npy`` says so (CIFAR-10-C, CIFAR-100-C). Folders ``fog/3/…`` hold images that are called as the clean
ones are (ImageNet-C), and lie in the folder that is named, or in one for each kind, ``weather/fog/3/…``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.datasets.base import Dataset
from robench.datasets.image_files import ImageFiles, opened_image
from robench.datasets.pixels import channels_first, unit_range
from robench.datasets.preprocessing import Preprocessing
from robench.datasets.published_corruptions import PublishedCorruptions
from robench.errors import DataError, first_line, one_line
from robench.files import expanded, file_sha256
from robench.records.corruptions import BENCHMARK, FURTHER, SEVERITIES, trial_name

_NAMES = (*BENCHMARK, *FURTHER)
_LONGEST_NAME = 36


def open_published(folder: str | Path, dataset: Dataset) -> PublishedCorruptions:
    """The corrupted images that a folder has of all samples of ``dataset``.

    Raises:
        DataError: there are none, the labels are not the data set's, or the folder holds another number
            of images.
    """
    home = expanded(folder)
    if not os.path.isdir(home):
        raise DataError("the folder of corrupted images does not exist", where=home)
    kinds: list[type[CorruptedArrays] | type[CorruptedFolders]] = [
        CorruptedArrays,
        CorruptedFolders,
    ]
    for kind in kinds:
        if kind.found(home):
            return kind(home, dataset)
    raise DataError(
        "the folder holds no corrupted images",
        where=home,
        hint="Expected are fog.npy and so on with labels.npy, as CIFAR-10-C has them, or folders fog/1 "
        "to fog/5, as ImageNet-C has them",
    )


def _name(dataset: Dataset) -> str:
    """Of a set's images under corruptions, as a threat model may have it: ``cifar10-c``."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", dataset.name).strip("-")
    return f"{plain[:_LONGEST_NAME].strip('-') or 'data'}-c"


class CorruptedArrays(PublishedCorruptions):
    """One array for each corruption: five severities of all samples, one after the other."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        names = self.found(folder)
        trials = [trial_name(name, severity) for name in names for severity in SEVERITIES]
        super().__init__(folder, _name(dataset), trials, dataset.sample_ids, dataset.input_shape)
        self._count = len(dataset)
        wanted = len(SEVERITIES) * self._count
        labels = self._array("labels")
        if labels.shape != (wanted,):
            raise DataError(
                f"labels.npy has shape {labels.shape}: five severities of the {self._count} samples of "
                f"{dataset.name} ({dataset.split}) are {wanted}",
                where=folder,
            )
        differing = np.asarray(labels) != np.tile(dataset.labels.numpy(), len(SEVERITIES))
        if differing.any():
            first = int(differing.argmax())
            raise DataError(
                f"labels.npy has another class than {dataset.name} for {int(differing.sum())} images, "
                f"first {first} of {dataset.sample_ids[first % self._count]!r}",
                where=folder,
                hint="The corrupted images have to be in the order of the clean samples",
            )
        for name in names:
            if len(images := self._array(name)) != wanted or images.ndim not in (3, 4):
                raise DataError(
                    f"{name}.npy has shape {images.shape}, not {wanted} images", where=folder
                )

    @staticmethod
    def found(folder: Path) -> list[str]:
        """Corruptions that there are arrays of."""
        return [n for n in _NAMES if os.path.isfile(folder / f"{n}.npy")]

    def _check(self, rows: Sequence[int], trial: str) -> None:
        """An array that is there has been found to hold all of them."""

    def _array(self, name: str) -> Any:
        path = self.folder / f"{name}.npy"
        try:
            return np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # NumPy raises almost anything at damaged files.
            raise DataError(f"cannot be read: {first_line(error)}", where=path) from error

    def _rows_of(self, rows: list[int], trial: str) -> Any:
        name, _, severity = trial.rpartition("_")
        start = (int(severity) - 1) * self._count
        # A copy, in the order of this machine's bytes.
        found = np.asarray(self._array(name)[[start + row for row in rows]])
        return found.astype(found.dtype.newbyteorder("="), copy=False)

    def _read(self, rows: list[int], trial: str) -> Tensor:
        pixels = torch.from_numpy(self._rows_of(rows, trial))
        last = pixels.unsqueeze(1) if pixels.ndim == 3 else channels_first(pixels, last=True)
        return unit_range(last, self.folder / self._file(trial)).contiguous()

    def _sha256(self, row: int, trial: str) -> str:
        return hashlib.sha256(self._rows_of([row], trial).tobytes()).hexdigest()

    def _file(self, trial: str) -> str:
        return f"{trial.rpartition('_')[0]}.npy"


class CorruptedFolders(PublishedCorruptions):
    """A folder for each corruption and severity, of images that are called as the clean ones are."""

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        if not isinstance(dataset, ImageFiles):
            raise DataError(
                f"corrupted image files belong to clean ones, and {dataset.name} has none",
                where=folder,
                hint="Name a folder of clean images as the data set",
            )
        self._homes = self.found(folder)
        trials = [
            trial_name(name, severity)
            for name, home in self._homes.items()
            for severity in SEVERITIES
            if os.path.isdir(home / str(severity))
        ]
        super().__init__(folder, _name(dataset), trials, dataset.sample_ids, dataset.input_shape)
        self._files = dataset.files
        self._preparation = Preprocessing.of(grey=dataset.input_shape[0] == 1, upright=False)

    @staticmethod
    def found(folder: Path) -> dict[str, Path]:
        """Corruption → its folder, there or one below."""
        below = sorted(path for path in folder.iterdir() if path.is_dir())
        return {
            name: home
            for place in reversed([folder, *below])
            for name in _NAMES
            if os.path.isdir(home := place / name)
        }

    def _path(self, row: int, trial: str) -> Path:
        name, _, severity = trial.rpartition("_")
        return self._homes[name] / severity / self._files[row]

    def _check(self, rows: Sequence[int], trial: str) -> None:
        missing = [row for row in rows if not os.path.isfile(self._path(row, trial))]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(rows)} images of {trial} are not there, first of "
                f"{self._ids[missing[0]]!r}",
                where=self._path(missing[0], trial),
                hint="A corrupted image has the path of its clean one below the folder of the severity",
            )

    def _read(self, rows: list[int], trial: str) -> Tensor:
        images: list[Tensor] = []
        for row in rows:
            with opened_image(self._path(row, trial)) as image:
                images.append(self._preparation.image(image))
            if images[-1].shape != images[0].shape:
                raise DataError(
                    f"has shape {tuple(images[-1].shape)}, others {tuple(images[0].shape)}",
                    where=self._path(row, trial),
                )
        return torch.stack(images) if images else torch.empty((0, *self._shape))

    def _sha256(self, row: int, trial: str) -> str:
        path = self._path(row, trial)
        try:
            return file_sha256(path)
        except OSError as error:
            raise DataError(f"cannot be read: {one_line(error)}", where=path) from error

    def _file(self, trial: str) -> str:
        name, _, severity = trial.rpartition("_")
        return f"{name}/{severity}"
