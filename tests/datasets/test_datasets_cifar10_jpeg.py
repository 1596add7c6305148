"""CIFAR-10's images as JPEG files, on a small copy of the folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from robench.datasets import load_dataset, load_training_splits
from robench.errors import DataError, UnknownNameError


def copy(root: Path) -> None:
    for split, count in (("train", 20), ("test", 3)):
        for shade, name in enumerate(("airplane", "cat")):
            folder = root / "cifar10-jpeg" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (32, 32), (100 * shade, i, 7)).save(folder / f"{i:04d}.jpg")


def test_the_folders_are_read_under_the_data_root(tmp_path: Path) -> None:
    copy(tmp_path)
    dataset = load_dataset("cifar10-jpeg", root=tmp_path)
    assert (dataset.name, dataset.split, len(dataset)) == ("cifar10-jpeg", "test", 6)
    assert dataset.class_names == ("airplane", "cat")
    assert dataset.input_shape == (3, 32, 32)
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.sample_ids[0] == "test/airplane/0000.jpg"
    # JPEG is lossy, so the shade is met and not hit.
    assert dataset.batch([3])[0, 0].mean().item() == pytest.approx(100 / 255, abs=0.02)


def test_the_folder_comes_from_the_environment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(tmp_path)
    monkeypatch.setenv("ROBENCH_DATA", str(tmp_path))
    assert len(load_dataset("cifar10-jpeg")) == 6


def test_validation_comes_from_the_training_images_alone(tmp_path: Path) -> None:
    copy(tmp_path)
    train, validation = load_training_splits("cifar10-jpeg", root=tmp_path)
    assert (len(train), len(validation)) == (36, 4)
    ids = {*train.sample_ids, *validation.sample_ids}
    assert len(ids) == 40
    assert ids.isdisjoint(load_dataset("cifar10-jpeg", root=tmp_path).sample_ids)
    assert validation.labels.tolist() == [0, 0, 1, 1]


def test_absent_images_say_where_they_belong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data-root") as caught:
        load_dataset("cifar10-jpeg", root=tmp_path, download=True)
    assert str(tmp_path / "cifar10-jpeg" / "test") in str(caught.value)
    with pytest.raises(UnknownNameError, match="'test'"):
        load_dataset("cifar10-jpeg", root=tmp_path, split="tset")
    assert not list(tmp_path.iterdir()), "nothing is fetched"
