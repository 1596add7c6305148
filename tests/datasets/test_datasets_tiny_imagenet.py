"""Tiny-ImageNet in its published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robench.datasets import load_dataset, load_training_splits
from robench.errors import DataError, UnknownNameError, UsageError

WORDS = {"n03": "crane", "n01": "goldfish, Carassius auratus", "n02": "crane, a bird"}
COLOURS = {"n01": 250, "n02": 130, "n03": 10}


def picture(path: Path, wnid: str, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.full((64, 64), COLOURS[wnid], dtype=np.uint8)
    Image.fromarray(grey).convert(mode).save(path, "JPEG")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "tiny-imagenet-200"
    for wnid in WORDS:
        rows = []
        for number in range(4):
            name = f"{wnid}_{number}.JPEG"
            picture(home / "train" / wnid / "images" / name, wnid, "L" if number == 1 else "RGB")
            rows.append(f"{name}\t0\t10\t31\t63")
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text("\n".join(rows) + "\n")
    rows = []
    for number, wnid in enumerate(["n02", "n01", "n03"]):
        picture(home / "val" / "images" / f"val_{number}.JPEG", wnid)
        rows.append(f"val_{number}.JPEG\t{wnid}\t{number}\t0\t63\t0")
    (home / "val" / "val_annotations.txt").write_text("\n".join(rows))
    (home / "wnids.txt").write_text("\n".join(WORDS) + "\n")
    lines = [f"{wnid}\t{words}" for wnid, words in {**WORDS, "n09": "unused"}.items()]
    (home / "words.txt").write_text("\n".join(lines))
    return home


def test_labels_are_the_sorted_wordnet_ids(home: Path) -> None:
    test = load_dataset("tiny-imagenet", root=home.parent)
    assert test.sample_ids == [f"val/images/val_{i}.JPEG" for i in range(3)]
    assert test.labels.tolist() == [1, 0, 2]
    assert test.class_names == ("goldfish", "crane n02", "crane n03")
    assert test.input_shape == (3, 64, 64)
    assert test.preprocessing is None
    wanted = torch.tensor([130.0, 250.0, 10.0]) / 255
    assert torch.allclose(test.batch([0, 1, 2]).mean(dim=(1, 2, 3)), wanted, atol=2 / 255)


def test_training_images_by_class_folder(home: Path) -> None:
    train, validation = load_training_splits("tiny-imagenet", root=home.parent)
    assert (len(train), len(validation)) == (11, 1)
    whole = load_dataset("tiny-imagenet", root=home.parent, split="train")
    assert whole.sample_ids[0] == "train/n01/images/n01_0.JPEG"
    assert whole.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert whole.batch([1]).shape == (1, 3, 64, 64), "grey images are read as RGB"
    assert set(whole.sample_ids).isdisjoint(
        load_dataset("tiny-imagenet", root=home.parent).sample_ids
    )


def test_its_boxes_are_masks(home: Path) -> None:
    masks = load_dataset("tiny-imagenet", root=home.parent, split="train").masks([0])
    assert masks is not None
    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[10:64, 0:32] = True  # both borders belong to the box
    assert torch.equal(masks[0], expected)
    line = load_dataset("tiny-imagenet", root=home.parent).masks([2])
    assert line is not None
    assert int(line.sum()) == 62


def test_other_sizes(home: Path) -> None:
    dataset = load_dataset("tiny-imagenet", root=home.parent, size=32)
    assert dataset.input_shape == (3, 32, 32)
    masks = dataset.masks([0])
    assert masks is not None
    assert masks.shape == (1, 32, 32)


def test_what_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tiny-imagenet-200\.zip"):
        load_dataset("tiny-imagenet", root=tmp_path / "elsewhere", download=True)
    with pytest.raises(UnknownNameError, match="Known: test, train"):
        load_dataset("tiny-imagenet", root=tmp_path, split="val")
    with pytest.raises(UsageError, match="no option"):
        load_dataset("tiny-imagenet", root=tmp_path, masks="x")
    annotations = home / "val" / "val_annotations.txt"
    whole = annotations.read_text()
    for text, words in [
        ("val_0.JPEG n02", "line 1 is not as published"),
        ("../../x\tn02\t0\t0\t1\t1", "line 1 is not as published"),
        ("val_0.JPEG\tn77\t0\t0\t1\t1", "a class 'n77' that wnids.txt has not"),
        ("val_0.JPEG\tn02\t0\ta\t1\t1", "no box: 0 a 1 1"),
        ("", "no images are there"),
        (whole.replace("val_0", "val_7"), "val_7"),
    ]:
        annotations.write_text(text)
        with pytest.raises(DataError, match=words):
            load_dataset("tiny-imagenet", root=tmp_path).batch([0, 1, 2])
    annotations.unlink()
    with pytest.raises(DataError, match="a rearranged copy is read as a folder"):
        load_dataset("tiny-imagenet", root=tmp_path)
