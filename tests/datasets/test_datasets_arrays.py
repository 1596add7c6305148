"""Arrays from memory, files and torch's own data sets."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from robench.datasets import ArrayDataset, from_torch, load_dataset, load_training_splits
from robench.errors import DataError, UnknownNameError, UsageError

INPUTS = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_uint8_is_divided_by_255() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    dataset = ArrayDataset(pixels, torch.tensor([1]), num_classes=2)
    assert torch.equal(dataset.batch([0]).flatten(), torch.arange(256) / 255)


def save(path: Path, **arrays: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{k: np.asarray(v) for k, v in arrays.items()})
    else:
        torch.save(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
@pytest.mark.parametrize(
    "keys", [("inputs", "labels"), ("x_test", "y_test"), ("images", "targets")]
)
def test_files_with_inputs_and_labels(tmp_path: Path, suffix: str, keys: tuple[str, str]) -> None:
    path = save(tmp_path / f"mine{suffix}", **{keys[0]: INPUTS, keys[1]: LABELS})
    dataset = load_dataset(path)
    assert dataset.name == "mine"
    assert torch.equal(dataset.batch(range(6)), INPUTS)
    assert torch.equal(dataset.labels, LABELS)
    assert load_dataset(f"file:{path}", n=3).spec().n == 3


def test_splits_in_a_file_are_never_mixed(tmp_path: Path) -> None:
    path = save(tmp_path / "d.npz", x_train=INPUTS, y_train=LABELS, x_test=INPUTS[:3] / 2,
                y_test=LABELS[:3])  # fmt: skip
    assert torch.equal(load_dataset(path).batch(range(3)), INPUTS[:3] / 2)
    assert torch.equal(load_dataset(path, split="train").batch(range(6)), INPUTS)
    with pytest.raises(UnknownNameError, match=r"no split 'validation'.*: test, train"):
        load_dataset(path, split="validation")
    train, validation = load_training_splits(path)
    assert len(train) + len(validation) == 6, "both are of the training split"
    only = save(tmp_path / "e.npz", x_test=INPUTS, y_test=LABELS)
    with pytest.raises(UnknownNameError, match="There are: test"):
        load_training_splits(only)
    whole = save(tmp_path / "f.npz", x=INPUTS, y=LABELS)
    assert len(load_dataset(whole, split="anything")) == 6


def test_channels_last_ids_names_and_masks(tmp_path: Path) -> None:
    pixels = (INPUTS.permute(0, 2, 3, 1) * 255).to(torch.uint8)
    masks = torch.zeros(6, 4, 4, dtype=torch.bool)
    masks[0, 1, 2] = True
    path = save(
        tmp_path / "d.npz",
        x=pixels,
        y=LABELS.view(6, 1),
        ids=[f"id-{i}" for i in range(6)],
        class_names=["a", "b", "c", "d"],
        masks=masks,
    )
    dataset = load_dataset(path)
    assert dataset.input_shape == (3, 4, 4)
    assert dataset.class_names == ("a", "b", "c", "d")
    assert dataset.sample_ids[5] == "id-5"
    assert torch.equal(dataset.batch([2])[0], pixels[2].permute(2, 0, 1) / 255)
    found = dataset.masks([0])
    assert found is not None
    assert torch.equal(found, masks[:1])


def test_npy_with_labels_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", INPUTS[:, 0].numpy())
    with pytest.raises(DataError, match="no labels"):
        load_dataset(tmp_path / "d.npy")
    np.save(tmp_path / "d_labels.npy", LABELS.numpy())
    assert load_dataset(tmp_path / "d.npy").input_shape == (1, 4, 4)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", inputs=np.array([Bomb()], dtype=object), labels=LABELS.numpy())
    np.save("b.npy", np.array([Bomb()], dtype=object))
    torch.save({"inputs": Bomb(), "labels": LABELS}, "c.pt")
    Path("d.pt").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npz", "b.npy", "c.pt", "d.pt"):
        with pytest.raises(DataError, match=r"cannot be read"):
            load_dataset(tmp_path / name)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".pt"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04 broken"])
def test_damaged_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"x{suffix}"):
        load_dataset(path)


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", inputs=INPUTS, labels=LABELS)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError):
        load_dataset(path)


def test_a_file_without_labels_names_its_arrays(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", inputs=INPUTS, other=LABELS)
    with pytest.raises(DataError, match=r"no labels among the arrays \['inputs', 'other'\]"):
        load_dataset(path)


def test_names_and_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        load_dataset("cifra10")
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(tmp_path / "nothing.npz")
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(UsageError, match="no data format"):
        load_dataset(tmp_path / "x.csv")


def test_a_shuffling_loader_keeps_the_order_of_its_data() -> None:
    loader = DataLoader(TensorDataset(INPUTS, LABELS), batch_size=4, shuffle=True)
    dataset = from_torch(loader, num_classes=3)
    assert torch.equal(dataset.batch(range(6)), INPUTS)
    assert torch.equal(dataset.labels, LABELS)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(INPUTS, LABELS.tolist(), strict=True)


def test_iterable_sources_are_read_once() -> None:
    for source in (Stream(), DataLoader(Stream(), batch_size=4)):
        dataset = from_torch(source)
        assert torch.equal(dataset.batch(range(6)), INPUTS)
        assert dataset.num_classes == 3


class Photographs:
    classes = ("cat", "dog")
    targets = (0, 1, 1)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (5, 4), (255, 51, 0)), self.targets[index]


def test_pil_items_and_their_class_names() -> None:
    dataset = from_torch(Photographs(), name="photographs")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.input_shape == (3, 4, 5)
    assert dataset.batch([1])[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_sources_that_are_no_data_set() -> None:
    with pytest.raises(UsageError, match="is no data set"):
        from_torch(7)
    with pytest.raises(DataError, match="empty"):
        from_torch(TensorDataset(INPUTS[:0], LABELS[:0]), num_classes=3)
    with pytest.raises(DataError, match=r"not \(image, label\)"):
        from_torch(TensorDataset(INPUTS))
    with pytest.raises(DataError, match=r"not \[0, 1\]"):
        from_torch(TensorDataset(INPUTS * 9, LABELS)).batch([0])
