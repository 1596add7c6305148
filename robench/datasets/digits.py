"""scikit-learn's digits: 1,797 real handwritten digits, 8×8, always at hand.

Each pixel counts the inked ones of a 4×4 block (0…16) and is divided by 16. The splits are
fixed and stratified: 500 test, 150 validation, 1,147 training samples.

Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998; the
test part of that set, as ``sklearn.datasets.load_digits`` ships it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robench.datasets.arrays import ArrayDataset
from robench.datasets.base import stratified_choice
from robench.registry import unknown_name

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TEST_SIZE", "VALIDATION_SIZE", "DigitsDataset", "load_digits"]

TEST_SIZE = 500
VALIDATION_SIZE = 150
SPLITS = ("train", "validation", "test")


class DigitsDataset(ArrayDataset):
    """Digits with their strokes as object masks.

    A cell belongs to the object where at least half of its 4×4 block is ink (value ≥ 0.5).
    """

    def _read_masks(self, indices: list[int]) -> Tensor:
        return self._read(indices)[:, 0] >= 0.5


def load_digits(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> DigitsDataset:
    """One of the three splits. ``root`` and ``download`` are accepted and not needed.

    Raises:
        UnknownNameError: the split is none of train, validation, test.
    """
    if split not in SPLITS:
        raise unknown_name("split of digits", split, list(SPLITS))
    # Takes most of a second to import, and only this data set needs it.
    from sklearn.datasets import load_digits as sklearn_digits

    bunch = sklearn_digits()
    ids = [f"digits/{i:04d}" for i in range(len(bunch.target))]
    labels = [int(label) for label in bunch.target]
    test = stratified_choice(ids, labels, TEST_SIZE, salt="digits test/")
    apart = set(test)
    rest = [i for i in range(len(ids)) if i not in apart]
    validation = [
        rest[i]
        for i in stratified_choice(
            [ids[i] for i in rest],
            [labels[i] for i in rest],
            VALIDATION_SIZE,
            salt="digits validation/",
        )
    ]
    apart.update(validation)
    train = [i for i in range(len(ids)) if i not in apart]
    chosen = {"train": train, "validation": validation, "test": test}[split]
    pixels = torch.from_numpy(bunch.images).to(torch.float32).div(16).unsqueeze(1)
    return DigitsDataset(
        pixels[torch.tensor(chosen)],
        torch.tensor([labels[i] for i in chosen]),
        name="digits",
        split=split,
        num_classes=10,
        sample_ids=[ids[i] for i in chosen],
    )
