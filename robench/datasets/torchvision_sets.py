"""The field's data sets, read through torchvision.

Each is kept under ``root`` (default: :func:`robench.files.data_folder`) and fetched only when
asked to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from robench.datasets.arrays import ArrayDataset
from robench.errors import DataError
from robench.files import data_folder
from robench.registry import unknown_name

# Krizhevsky, 2009 (both CIFARs); Netzer et al., 2011; LeCun et al., 1998; Xiao et al., 2017.
TORCHVISION_SETS: Final = {
    "cifar10": ("CIFAR10", "60,000 images, 32x32, 10 classes"),
    "cifar100": ("CIFAR100", "60,000 images, 32x32, 100 classes"),
    "svhn": ("SVHN", "house numbers, 32x32, 10 classes"),
    "mnist": ("MNIST", "70,000 handwritten digits, 28x28"),
    "fashion-mnist": ("FashionMNIST", "70,000 pieces of clothing, 28x28"),
}
"""Name → torchvision's class, and what it holds."""


def load_torchvision(
    name: str, split: str = "test", *, root: Path | None = None, download: bool = False
) -> ArrayDataset:
    """The ``train`` or ``test`` part of one of :data:`TORCHVISION_SETS`.

    Raises:
        UnknownNameError: another split.
        DataError: the files are not there or damaged, or cannot be fetched.
    """
    if split not in ("train", "test"):
        raise unknown_name(f"split of {name}", split, ["train", "test"])
    # Seconds to import; the embedded data needs none of it.
    from torchvision import datasets as sets

    folder = data_folder(root)
    kind, _ = TORCHVISION_SETS[name]
    part: dict[str, Any] = {"split": split} if kind == "SVHN" else {"train": split == "train"}
    try:
        source: Any = getattr(sets, kind)(str(folder), download=download, **part)
    except Exception as error:  # Damaged files make the readers raise almost anything.
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
        # torchvision's SVHN names no classes, and MNIST's are "0 - zero" and so on.
        class_names=list("0123456789") if kind in ("SVHN", "MNIST") else source.classes,
        sample_ids=[f"{name}/{split}/{i:05d}" for i in range(len(inputs))],
    )
