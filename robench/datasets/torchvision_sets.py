"""The field's data sets, read through torchvision.

Each is kept under ``root`` (default: :func:`robench.files.data_folder`) and fetched only when
asked to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robench.datasets.arrays import ArrayDataset
from robench.errors import DataError
from robench.files import data_folder
from robench.registry import unknown_name

__all__ = [
    "load_cifar10",
    "load_cifar100",
    "load_fashion_mnist",
    "load_mnist",
    "load_svhn",
]

_DIGITS = tuple(str(i) for i in range(10))


def load_cifar10(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> ArrayDataset:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 training and 10,000 test images."""
    return _load("CIFAR10", "cifar10", split, root, download)


def load_cifar100(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> ArrayDataset:
    """CIFAR-100 (Krizhevsky, 2009): 50,000 training and 10,000 test images."""
    return _load("CIFAR100", "cifar100", split, root, download)


def load_svhn(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> ArrayDataset:
    """Street View House Numbers (Netzer et al., 2011), cropped digits."""
    return _load("SVHN", "svhn", split, root, download, _DIGITS)


def load_mnist(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> ArrayDataset:
    """MNIST (LeCun et al., 1998): 60,000 training and 10,000 test images."""
    return _load("MNIST", "mnist", split, root, download, _DIGITS)


def load_fashion_mnist(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> ArrayDataset:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 training and 10,000 test images."""
    return _load("FashionMNIST", "fashion-mnist", split, root, download)


def _load(
    kind: str,
    name: str,
    split: str,
    root: Path | None,
    download: bool,
    class_names: Sequence[str] | None = None,
) -> ArrayDataset:
    if split not in ("train", "test"):
        raise unknown_name(f"split of {name}", split, ["train", "test"])
    # Seconds to import; the embedded data needs none of it.
    from torchvision import datasets as sets

    folder = data_folder(root)
    part: dict[str, Any] = {"split": split} if kind == "SVHN" else {"train": split == "train"}
    try:
        source: Any = getattr(sets, kind)(str(folder), download=download, **part)
    except (RuntimeError, OSError) as error:
        if download:
            raise DataError(
                f"{name} could not be fetched: {error}", where=folder, hint="Try again later"
            ) from error
        raise DataError(
            f"{name} is not there, or damaged",
            where=folder,
            hint="Fetch it with --download (download=True), or say where it is with --data",
        ) from error
    inputs = torch.as_tensor(source.data)
    if inputs.ndim == 3:
        inputs = inputs.unsqueeze(1)
    elif inputs.shape[-1] == 3:
        inputs = inputs.permute(0, 3, 1, 2)
    return ArrayDataset(
        inputs,
        torch.as_tensor(source.labels if kind == "SVHN" else source.targets),
        name=name,
        split=split,
        class_names=class_names or source.classes,
        sample_ids=[f"{name}/{split}/{i:05d}" for i in range(len(inputs))],
    )
