"""A data set of two classes: dark images, and bright ones."""

from __future__ import annotations

from pathlib import Path

import torch

from robench.datasets import ArrayDataset, Dataset
from robench.registry import unknown_name

_SEEDS = {"train": 0, "test": 1}


def load_bright_or_dark(
    split: str, *, root: Path | None = None, download: bool = False, size: int = 8
) -> Dataset:
    """100 images, float32 (100, 1, size, size) in [0, 1]; nothing is kept on disk.

    Raises:
        UnknownNameError: there is no such split.
    """
    if split not in _SEEDS:
        raise unknown_name("split", split, list(_SEEDS))
    generator = torch.Generator().manual_seed(_SEEDS[split])
    labels = torch.arange(100) % 2
    inputs = 0.5 * torch.rand((100, 1, size, size), generator=generator)
    return ArrayDataset(
        inputs + 0.5 * labels[:, None, None, None],
        labels,
        name="bright-or-dark",
        split=split,
        class_names=("dark", "bright"),
        sample_ids=[f"bright-or-dark/{split}/{index:03}" for index in range(100)],
    )
