"""A list of image files, each with its label, read as they are asked for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from robench.datasets.base import Dataset
from robench.datasets.object_masks import MaskSource
from robench.datasets.preprocessing import Preprocessing
from robench.errors import DataError

__all__ = ["ImageFiles", "composed"]


class ImageFiles(Dataset):
    """Images below one folder; nothing but their names and labels is kept in memory.

    Ids are paths relative to the folder with ``/`` and composed Unicode: the same on every
    operating system.

    Args:
        root: the folder.
        files: paths relative to ``root``, with ``/``.
        labels: the class of each.
        name, split: as it reads in records.
        class_names: one a class, in label order.
        preprocessing: resize, crop, channels; the default reads RGB as it is.
        masks: where the objects are, if known.
        id_prefix: put before every id, so that splits of one set never share ids.

    Raises:
        DataError: no files, or the first cannot be read.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Sequence[int],
        *,
        name: str,
        split: str,
        class_names: Sequence[str],
        preprocessing: Preprocessing | None = None,
        masks: MaskSource | None = None,
        id_prefix: str = "",
    ) -> None:
        if not files:
            raise DataError("no images are there", where=root)
        self._root = root
        self._files = files
        self._preparation = preprocessing or Preprocessing()
        self._masks = masks
        self._prefix = id_prefix
        first = self._image(0)
        super().__init__(
            name=name,
            split=split,
            sample_ids=[id_prefix + composed(file) for file in files],
            labels=torch.tensor(labels),
            class_names=class_names,
            input_shape=(first.shape[0], first.shape[1], first.shape[2]),
            preprocessing=self._preparation.spec,
        )

    def _image(self, index: int) -> Tensor:
        return self._preparation.image(_open(self._root / self._files[index]))

    def _read(self, indices: list[int]) -> Tensor:
        batch = torch.empty((len(indices), *self.input_shape), dtype=torch.float32)
        for row, index in enumerate(indices):
            image = self._image(index)
            if tuple(image.shape) != self.input_shape:
                raise DataError(
                    f"the image is {_size(image)}, the first one {_size(batch[0])}",
                    where=self._root / self._files[index],
                    hint="Bring all to one size with size=, or resize= and crop=",
                )
            batch[row] = image
        return batch

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        if self._masks is None:
            return None
        result = torch.zeros((len(indices), *self.input_shape[1:]), dtype=torch.bool)
        for row, index in enumerate(indices):
            relative = self.sample_ids[index].removeprefix(self._prefix)
            # The size is in the header; the pixels are not decoded again.
            mask = self._masks.mask(relative, _image_size(self._root / self._files[index]))
            if mask is not None:
                result[row] = self._preparation.mask(mask)
        return result


def composed(text: str) -> str:
    """Composed Unicode: macOS stores names decomposed, and a file keeps one id everywhere."""
    return unicodedata.normalize("NFC", text)


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be read: {error}", where=path) from error


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"the image cannot be read: {error}", where=path) from error


def _size(image: Tensor) -> str:
    return "x".join(str(side) for side in reversed(image.shape[-2:]))
