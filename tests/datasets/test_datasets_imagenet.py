"""ImageNet: the field's 5,000 images by list, whole parts, preprocessing, boxes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from robench.datasets import load_dataset, load_training_splits
from robench.datasets.imagenet import imagenet_classes, imagenet_subset
from robench.errors import DataError, UnknownNameError, UsageError
from robench.records import PreprocessingSpec

FIRST = "n01440764/ILSVRC2012_val_00009396.JPEG"


def jpeg(path: Path, seed: int = 0, size: tuple[int, int] = (300, 280)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, "JPEG")
    return path


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three images of two classes, and their list."""
    files = [FIRST, "n01440764/ILSVRC2012_val_00000293.JPEG", "n15075141/ILSVRC2012_val_1.JPEG"]
    for seed, file in enumerate(files):
        jpeg(tmp_path / "imagenet" / "val" / file, seed)
    path = tmp_path / "list.txt"
    path.write_text("# ours\n" + "\n".join(f"val/{file}" for file in reversed(files)) + "\n\n")
    return path


def test_the_list_is_the_published_one() -> None:
    files = imagenet_subset()
    assert len(files) == len(set(files)) == 5000
    assert len({file.partition("/")[0] for file in files}) == 997
    # Of RobustBench's file, sorted.
    digest = hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
    assert digest == "2f1fd0aa050d2393d0d1ff5aa3da5cf25831254f1cb59266e3162a1e2c61adc8"
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert list(classes) == sorted(classes)
    assert (classes[0], classes[-1]) == ("n01440764", "n15075141")


def test_the_5000_are_the_test_split(tmp_path: Path) -> None:
    home = tmp_path / "imagenet" / "val"
    content = jpeg(tmp_path / "x.JPEG", size=(16, 12)).read_bytes()
    for file in imagenet_subset():
        path = home / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    jpeg(home / "n01440764" / "ILSVRC2012_val_99999999.JPEG")
    dataset = load_dataset("imagenet", root=tmp_path)
    assert (len(dataset), dataset.num_classes) == (5000, 1000)
    assert dataset.input_shape == (3, 224, 224)
    assert dataset.sample_ids[0] == f"val/{min(imagenet_subset())}"
    # Three classes have no image: the labels after them do not move.
    position = {wnid: label for label, wnid in enumerate(imagenet_classes())}
    assert all(
        position[name.split("/")[1]] == label
        for name, label in zip(dataset.sample_ids, dataset.labels.tolist(), strict=True)
    )
    (home / FIRST).unlink()
    with pytest.raises(DataError, match=f"1 of the listed images are not there, first {FIRST}"):
        load_dataset("imagenet", root=tmp_path)
    # The whole part needs every class folder, or the labels would be others.
    with pytest.raises(DataError, match="class folders differ"):
        load_dataset("imagenet", root=tmp_path, split="val")
    for wnid in imagenet_classes():
        (home / wnid).mkdir(exist_ok=True)
    whole = load_dataset("imagenet", root=tmp_path, split="val")
    assert (len(whole), whole.num_classes) == (5000, 1000)
    assert "val/n01440764/ILSVRC2012_val_99999999.JPEG" in whole.sample_ids


@pytest.mark.parametrize(
    "options, transform",
    [
        ({}, [transforms.Resize(256), transforms.CenterCrop(224)]),
        (
            {"resize": 232, "crop": 224, "interpolation": "bicubic"},
            [
                transforms.Resize(232, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(224),
            ],
        ),
        ({"crop": 288}, [transforms.CenterCrop(288)]),
        ({"size": 224}, [transforms.Resize([224, 224])]),
    ],
    ids=["Res256Crop224", "bicubic", "Crop288", "Res224"],
)
def test_preprocessings_of_the_field(few: Path, options: Any, transform: list[Any]) -> None:
    dataset = load_dataset("imagenet", root=few.parent, samples=few, **options)
    path = few.parent / "imagenet" / dataset.sample_ids[1]
    with Image.open(path) as image:
        expected = transforms.Compose([*transform, transforms.ToTensor()])(image)
    assert torch.equal(dataset.batch([1])[0], expected)
    assert dataset.preprocessing is not None
    asked = options or {"resize": 256, "crop": 224}
    assert dataset.preprocessing == PreprocessingSpec.model_validate(
        {**asked, "size": (224, 224)} if "size" in asked else asked
    )


def test_a_list_of_ones_own(few: Path) -> None:
    dataset = load_dataset("imagenet", root=few.parent, samples=str(few))
    assert [name.rpartition("_")[2] for name in dataset.sample_ids] == [
        "00000293.JPEG",
        "00009396.JPEG",
        "1.JPEG",
    ]
    assert dataset.labels.tolist() == [0, 0, 999]
    assert dataset.subset(2).preprocessing == dataset.preprocessing


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "the list of samples is empty"),
        ("n01440764/../../../etc/passwd", "line 1 names no image of a class"),
        ("n00000000/x.JPEG", "line 1 names no image of a class"),
        ("# x\nILSVRC2012_val_00000293.JPEG", "line 2 names no image of a class"),
        ("n01440764/nosuch.JPEG", "1 of the listed images are not there"),
    ],
)
def test_lists_that_are_none(few: Path, text: str, words: str) -> None:
    few.write_text(text)
    with pytest.raises(DataError, match=words) as raised:
        load_dataset("imagenet", root=few.parent, samples=few)
    assert "\n" not in str(raised.value)


def test_boxes_are_masks(few: Path) -> None:
    folder = few.parent / "boxes" / "val"
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_val_00000293.xml").write_text(
        "<annotation><size><width>300</width><height>280</height></size><object><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>150</xmax><ymax>280</ymax>"
        "</bndbox></object></annotation>"
    )
    dataset = load_dataset("imagenet", root=few.parent, samples=few, masks=str(folder.parent))
    masks = dataset.masks([0, 1])
    assert masks is not None
    assert masks.shape == (2, 224, 224)
    # The left half, through the same resize and crop; the other has no box.
    assert masks[0, :, :112].all()
    assert not masks[0, :, 112:].any()
    assert not masks[1].any()


def test_archives_are_unpacked_by_torchvision(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets as sets

    home = tmp_path / "imagenet"
    (home / "val").rename(tmp_path / "inside")
    calls = []

    def unpack(root: str, split: str) -> None:
        calls.append((root, split))
        if len(calls) == 1:
            raise RuntimeError("The archive ILSVRC2012_devkit_t12.tar.gz\nis not present")
        (tmp_path / "inside").rename(home / "val")

    monkeypatch.setattr(sets, "ImageNet", unpack)
    with pytest.raises(DataError, match="cannot be downloaded"):
        load_dataset("imagenet", root=tmp_path, download=True)
    assert not calls
    (home / "ILSVRC2012_img_val.tar").write_bytes(b"tar")
    with pytest.raises(DataError, match=r"cannot be unpacked: .*devkit_t12.tar.gz is not present"):
        load_dataset("imagenet", root=tmp_path)
    assert len(load_dataset("imagenet", root=tmp_path, samples=few)) == 3
    assert calls == [(str(home), "val")] * 2


def test_training_does_not_see_the_validation_part(tmp_path: Path) -> None:
    for wnid in imagenet_classes():
        (tmp_path / "imagenet" / "train" / wnid).mkdir(parents=True)
    for number in range(3):
        jpeg(tmp_path / f"imagenet/train/n01440764/n01440764_{number}.JPEG", size=(20, 20))
    train, validation = load_training_splits("imagenet", root=tmp_path)
    assert all(name.startswith("train/") for name in (*train.sample_ids, *validation.sample_ids))


def test_wrong_options(few: Path) -> None:
    root = few.parent
    with pytest.raises(UnknownNameError, match="Known: test, train"):
        load_dataset("imagenet", root=root, split="validation")
    with pytest.raises(UsageError, match="has no option 'grey'"):
        load_dataset("imagenet", root=root, grey=True)
    with pytest.raises(UsageError, match="belongs to the split 'test'"):
        load_dataset("imagenet", root=root, samples=few, split="val")
    for options in ({"resize": 9, "size": 9}, {"interpolation": "cubic"}, {"crop": "a"}):
        with pytest.raises(UsageError) as raised:
            load_dataset("imagenet", root=root, samples=few, **options)
        assert "\n" not in str(raised.value)
