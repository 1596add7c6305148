"""The embedded digits and their fixed splits."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits

from robench.datasets import load_dataset, load_training_splits
from robench.errors import UnknownNameError

# Pinned: a change here would make every committed record and checkpoint incomparable.
FINGERPRINTS = {
    "train": "1561679bfb250ae9f6ad9207a786005c70d99f2adb6b27fb5af20e7161b910d3",
    "validation": "a04bb3f7267094ff8f25c25071aedbc87166968fcb009a92d1a21ed79d27183d",
    "test": "b0f4b0b0ac596c15a3b299b8ccd948d8b9e8e678df2f30accd71ade04da95d9c",
}


@pytest.mark.parametrize("split", FINGERPRINTS)
def test_the_splits_never_change(split: str) -> None:
    assert load_dataset("digits", split=split).fingerprint == FINGERPRINTS[split]


def test_the_splits_part_all_digits() -> None:
    parts = [load_dataset("digits", split=split) for split in FINGERPRINTS]
    assert [len(part) for part in parts] == [1147, 150, 500]
    together = [name for part in parts for name in part.sample_ids]
    assert sorted(together) == [f"digits/{i:04d}" for i in range(1797)]
    assert torch.bincount(parts[1].labels).tolist() == [15] * 10
    assert torch.bincount(parts[2].labels).min() >= 48


def test_pixels_and_labels_are_scikit_learns() -> None:
    bunch = sklearn_digits()
    dataset = load_dataset("digits")
    chosen = [int(name.removeprefix("digits/")) for name in dataset.sample_ids]
    expected = torch.from_numpy(bunch.images[chosen]).float() / 16
    inputs = dataset.batch(range(len(dataset)))
    assert inputs.dtype == torch.float32
    assert inputs.shape == (500, 1, 8, 8)
    assert torch.equal(inputs[:, 0], expected)
    assert dataset.labels.tolist() == bunch.target[chosen].tolist()
    masks = dataset.masks(range(500))
    assert masks is not None
    assert torch.equal(masks, expected >= 0.5)
    assert masks.flatten(1).any(1).all(), "every digit has ink"


def test_training_never_sees_the_test_split() -> None:
    train, validation = load_training_splits("digits")
    assert (train.split, validation.split) == ("train", "validation")
    test = set(load_dataset("digits").sample_ids)
    assert test.isdisjoint(train.sample_ids)
    assert test.isdisjoint(validation.sample_ids)


def test_n_is_a_subset() -> None:
    assert len(load_dataset("digits", n=100)) == 100


def test_an_unknown_split_lists_the_splits() -> None:
    with pytest.raises(UnknownNameError, match="'test'"):
        load_dataset("digits", split="tests")
