"""scikit-learn's digits: 1,797 real handwritten digits, 8×8, always at hand.

Each pixel counts the inked ones of a 4×4 block (0…16) and is divided by 16. The splits are
fixed and stratified: 500 test, 150 validation, 1,147 training samples. The object is where at
least half of a block is ink.

Source: Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998; the
test part of that set, as ``sklearn.datasets.load_digits`` ships it.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from robench.datasets.arrays import ArrayDataset
from robench.datasets.base import Dataset, hold_out
from robench.errors import DataError
from robench.registry import unknown_name

TEST_SIZE = 500
VALIDATION_SIZE = 150
SPLITS = ("train", "validation", "test")


def load_digits(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> Dataset:
    """One of the three splits. ``root`` and ``download`` are accepted and not needed.

    Raises:
        UnknownNameError: the split is none of train, validation, test.
    """
    if split not in SPLITS:
        raise unknown_name("split of digits", split, list(SPLITS))
    rows = torch.from_numpy(_rows())
    pixels = rows[:, :-1].reshape(-1, 1, 8, 8) / 16
    every = ArrayDataset(
        pixels,
        rows[:, -1].to(torch.int64),
        name="digits",
        split="train",
        sample_ids=[f"digits/{i:04d}" for i in range(len(pixels))],
        masks=pixels[:, 0] >= 0.5,
    )
    rest, test = hold_out(every, TEST_SIZE, split="test", salt="digits test/")
    train, validation = hold_out(rest, VALIDATION_SIZE, salt="digits validation/")
    return {"train": train, "validation": validation, "test": test}[split]


@cache
def _rows() -> np.ndarray:
    """float32 (1797, 65): 64 counts of ink and the label. Not to be written to."""
    return np.loadtxt(_file(), delimiter=",", dtype=np.float32)


def _file() -> Path:
    """scikit-learn's file of digits, found without its package, whose import takes seconds."""
    spec = find_spec("sklearn")
    places = (spec and spec.submodule_search_locations) or []
    for place in places:
        path = Path(place, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    raise DataError("scikit-learn's digits are not installed", hint="Install scikit-learn again")
