"""A list of image files, each with its label, read as they are asked for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from robench.datasets.base import ImageByImage
from robench.datasets.object_masks import MaskSource
from robench.datasets.preprocessing import Preprocessing
from robench.errors import DataError

__all__ = ["ImageFiles", "composed"]


class ImageFiles(ImageByImage):
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
        super().__init__(
            name=name,
            split=split,
            sample_ids=[id_prefix + composed(file) for file in files],
            labels=torch.tensor(labels),
            class_names=class_names,
            input_shape=self._shape_of_first(),
            preprocessing=self._preparation.spec,
        )

    def _image(self, index: int) -> Tensor:
        with _opened(self._place(index)) as image:
            return self._preparation.image(image)

    def _place(self, index: int) -> Path:
        return self._root / self._files[index]

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        if self._masks is None:
            return None
        result = torch.zeros((len(indices), *self.input_shape[1:]), dtype=torch.bool)
        for row, index in enumerate(indices):
            relative = self.sample_ids[index].removeprefix(self._prefix)
            # The size is in the header; the pixels are not decoded again.
            with _opened(self._place(index)) as image:
                size = image.size
            mask = self._masks.mask(relative, size)
            if mask is not None:
                result[row] = self._preparation.mask(mask)
        return result


def composed(text: str) -> str:
    """Composed Unicode: macOS stores names decomposed, and a file keeps one id everywhere."""
    return unicodedata.normalize("NFC", text)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be read: {error}", where=path) from error
