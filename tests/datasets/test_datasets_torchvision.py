"""torchvision's sets from files in their own formats; nothing is downloaded."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robench.datasets import load_dataset, load_training_splits
from robench.errors import DataError, UnknownNameError
from robench.files import data_folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "mnist", "fashion-mnist"])
def test_absent_data_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--download"):
        load_dataset(name, root=tmp_path)
    with pytest.raises(UnknownNameError, match="'test'"):
        load_dataset(name, root=tmp_path, split="tset")
    assert not list(tmp_path.rglob("*.gz")), "nothing is fetched unasked"


def idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    with gzip.open(path.with_suffix(".gz"), "wb") as zipped:
        zipped.write(header + array.tobytes())
    path.write_bytes(header + array.tobytes())


def test_mnist_files_are_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    pixels = random.integers(0, 256, (4, 28, 28)).astype(np.uint8)
    for prefix in ("train", "t10k"):
        idx(raw / f"{prefix}-images-idx3-ubyte", pixels)
        idx(raw / f"{prefix}-labels-idx1-ubyte", np.array([3, 1, 4, 1], dtype=np.uint8))
    dataset = load_dataset("mnist", root=tmp_path)
    assert dataset.input_shape == (1, 28, 28)
    assert dataset.labels.tolist() == [3, 1, 4, 1]
    assert torch.equal(dataset.batch([2])[0, 0], torch.from_numpy(pixels[2]) / 255)
    assert dataset.sample_ids[0] == "mnist/test/00000"
    train, validation = load_training_splits("mnist", root=tmp_path)
    assert (len(train), len(validation)) == (3, 1)


def test_cifar_layout_becomes_nchw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets as sets

    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)

    class Fake:
        def __init__(self, root: str, **options: Any) -> None:
            assert options == {"train": False, "download": True}
            self.data, self.targets, self.classes = pixels, [0, 1, 2, 3, 4], list("abcdefghij")

    monkeypatch.setattr(sets, "CIFAR10", Fake)
    dataset = load_dataset("cifar10", root=tmp_path, download=True)
    assert dataset.class_names == tuple("abcdefghij")
    expected = torch.from_numpy(pixels.transpose(0, 3, 1, 2)) / 255
    assert torch.equal(dataset.batch(range(5)), expected)


def test_the_root_can_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBENCH_DATA", str(tmp_path))
    assert data_folder(None) == tmp_path
    assert data_folder(tmp_path / "x") == tmp_path / "x"
