"""Clean samples kept in a results folder, to be shown beside what became of them.

Records hold no clean inputs but a few panels. What is kept here is for the eye: 256 grey levels, and of
large images only so many pixels. One npz a data set, by its fingerprint.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robench.errors import StoreError
from robench.files import atomic_write, file_sha256
from robench.results.arrays import load_arrays, save_arrays
from robench.results.store import Store

LARGEST = 64
"""Pixels of the longer side that are kept"""


@dataclass(frozen=True, eq=False)
class CleanSamples:
    """The samples of one data set.

    Args:
        sample_ids: n names.
        images: (n, h, w, C) uint8, C 1 or 3: of each image every ``stride``-th pixel.
        stride: 1: all of them.

    Raises:
        StoreError: the images are of another shape or type.
    """

    sample_ids: tuple[str, ...]
    images: npt.NDArray[np.uint8]
    stride: int

    def __post_init__(self) -> None:
        shape, n = self.images.shape, len(self.sample_ids)
        fits = len(shape) == 4 and shape[0] == n and shape[-1] in (1, 3) and self.stride > 0
        if not fits or self.images.dtype != np.uint8:
            raise StoreError(f"clean samples have shape {shape} and type {self.images.dtype}")

    @classmethod
    def of(cls, sample_ids: Sequence[str], inputs: npt.NDArray[np.floating[Any]]) -> CleanSamples:
        """Of inputs (n, C, H, W) in [0, 1]."""
        return cls(tuple(sample_ids), *thinned(inputs))


def thinned(inputs: npt.NDArray[np.floating[Any]]) -> tuple[npt.NDArray[np.uint8], int]:
    """Inputs (n, C, H, W) in [0, 1] as images (n, h, w, C), and their stride."""
    stride = -(-max(inputs.shape[2:]) // LARGEST)
    images = np.moveaxis(inputs[:, :, ::stride, ::stride], 1, -1)
    return np.rint(255 * images).astype(np.uint8), stride


def keep_clean_samples(store: Store, fingerprint: str, samples: CleanSamples) -> None:
    """Write the samples of the data set with this fingerprint.

    Raises:
        StoreError: the file cannot be written.
    """
    arrays = {
        "sample_ids": np.array(samples.sample_ids, dtype=np.str_),
        "images": samples.images,
        "stride": np.array(samples.stride),
    }
    path = store.folder / "samples" / f"{fingerprint}.npz"
    atomic_write(path, functools.partial(save_arrays, arrays=arrays))


def read_clean_samples(store: Store, fingerprint: str) -> CleanSamples | None:
    """The samples that were kept of a data set; None if none were.

    Raises:
        StoreError: the file cannot be read.
        CorruptRecordError: it is damaged.
    """
    path = store.folder / "samples" / f"{fingerprint}.npz"
    if not path.is_file():
        return None
    arrays = load_arrays(path, file_sha256(path))
    try:
        ids, images, stride = arrays["sample_ids"], arrays["images"], arrays["stride"]
        return CleanSamples(tuple(map(str, ids)), images, int(stride))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"kept clean samples lack {error}", where=path) from error
