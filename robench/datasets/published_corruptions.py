"""Samples as common corruptions left them, where somebody published the images: what every form offers."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from pathlib import Path

from torch import Tensor

from robench.errors import DataError


class PublishedCorruptions(ABC):
    """Corrupted images of a data set's samples, read as they are asked for.

    Args:
        folder: holds them.
        name: of the set, in threat models.
        trials: names such as ``fog_3`` of what the folder has.
        sample_ids: of all clean samples.
        input_shape: (C, H, W) of theirs.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        trials: Collection[str],
        sample_ids: Sequence[str],
        input_shape: tuple[int, int, int],
    ) -> None:
        self.folder = folder
        self.trials = frozenset(trials)
        self._name = name
        self._ids = sample_ids
        self._shape = input_shape
        self._rows: Sequence[int] = range(len(sample_ids))

    def at(self, indices: Sequence[int]) -> PublishedCorruptions:
        """The same of some of the samples, in this order."""
        chosen = copy(self)
        chosen._rows = [self._rows[index] for index in indices]
        return chosen

    def read(self, indices: Iterable[int], trial: str) -> Tensor | None:
        """Images of samples, float32 (N, C, H, W) in [0, 1]; None: the folder has no such trial.

        Raises:
            DataError: one is not there, cannot be read, or has another shape.
        """
        if trial not in self.trials:
            return None
        rows = [self._rows[index] for index in indices]
        images = self._read(rows, trial)
        if images.shape[1:] != self._shape:
            raise DataError(
                f"{trial} has images of shape {tuple(images.shape[1:])}, the clean samples {self._shape}",
                where=self.folder,
                hint="Bring the clean samples to the shape of the corrupted ones, as with "
                "--dataset-option resize=256 --dataset-option crop=224",
            )
        return images

    def check(self, trials: Iterable[str]) -> None:
        """Refuse a folder without some of these, before anything is evaluated.

        Raises:
            DataError: a trial, or one of its images, is not there, or has another shape.
        """
        missing = [trial for trial in trials if trial not in self.trials]
        if missing:
            raise DataError(
                f"{len(missing)} of the corruptions are not there, first {self._file(missing[0])}",
                where=self.folder,
                hint="Complete the folder, or choose with --set corruptions.only=fog,snow",
            )
        for trial in trials:
            self._check(self._rows, trial)
            self.read([0], trial)

    def identity(self, trials: Collection[str]) -> str:
        """A name, such as ``cifar10-c-``, and 12 digits of a SHA-256 over the samples' images of the trials.

        Raises:
            DataError: one cannot be read.
        """
        digest = hashlib.sha256()
        for row in sorted(self._rows, key=self._ids.__getitem__):
            for trial in sorted(self.trials & set(trials)):
                digest.update(f"{self._ids[row]}\0{trial}\0{self._sha256(row, trial)}\0".encode())
        return f"{self._name}-{digest.hexdigest()[:12]}"

    @abstractmethod
    def _read(self, rows: list[int], trial: str) -> Tensor: ...

    @abstractmethod
    def _sha256(self, row: int, trial: str) -> str:
        """Of one image as it is kept."""

    @abstractmethod
    def _file(self, trial: str) -> str:
        """What a trial is called in the folder."""

    @abstractmethod
    def _check(self, rows: Sequence[int], trial: str) -> None:
        """DataError: an image is not there."""
