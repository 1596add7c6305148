"""Folders of images: ids, labels, sizes, masks, and what is refused."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robench.datasets import FolderDataset, Preprocessing, load_dataset, load_training_splits
from robench.errors import DataError, UnknownNameError, UsageError


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    random = np.random.default_rng(0)
    for class_name in ("cat", "dog"):
        for i in range(3):
            write(root / class_name / f"{i}.png", random.integers(0, 256, (6, 8, 3)))
    return root


def test_classes_ids_and_pixels(folder: Path) -> None:
    dataset = load_dataset(folder)
    assert dataset.name == "pets"
    assert dataset.class_names == ("cat", "dog")
    assert list(dataset.sample_ids) == [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.input_shape == (3, 6, 8)
    expected = np.asarray(Image.open(folder / "dog" / "1.png")).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(dataset.batch([4])[0].numpy(), expected)
    assert dataset.masks([0]) is None
    assert load_dataset(f"folder:{folder}").fingerprint == dataset.fingerprint


def test_nothing_is_read_before_it_is_asked_for(folder: Path) -> None:
    dataset = FolderDataset(folder)
    (folder / "dog" / "2.png").write_bytes(b"not an image")
    assert dataset.batch(range(5)).shape[0] == 5
    with pytest.raises(DataError, match=r"2\.png: the image cannot be read"):
        dataset.batch([5])


def test_truncated_image_is_named(folder: Path) -> None:
    whole = (folder / "dog" / "2.png").read_bytes()
    dataset = FolderDataset(folder)
    (folder / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"2\.png"):
        dataset.batch([5])


def test_ids_do_not_depend_on_the_file_system(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "é.png")
    write(tmp_path / "b" / decomposed, np.zeros((2, 2)))
    write(tmp_path / "B" / "x.PNG", np.zeros((2, 2)))
    (tmp_path / ".cache").mkdir()
    write(tmp_path / "b" / ".hidden.png", np.zeros((2, 2)))
    (tmp_path / "b" / "notes.txt").write_text("no image")
    dataset = FolderDataset(tmp_path)
    assert list(dataset.sample_ids) == ["B/x.PNG", "b/é.png"]
    assert unicodedata.is_normalized("NFC", dataset.sample_ids[1])
    assert dataset.batch([0]).shape == (1, 3, 2, 2), "grey images are read as RGB"


def test_splits_are_subfolders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for class_name in ("a", "b"):
            for i in range(10):
                write(tmp_path / split / class_name / f"{i}.png", np.full((2, 2), 20 * i))
    test = load_dataset(tmp_path)
    assert (test.split, test.sample_ids[0]) == ("test", "val/a/0.png")
    train, validation = load_training_splits(tmp_path)
    assert len(train) == 20
    assert len(validation) == 20
    with pytest.raises(UnknownNameError, match="There are: train, val"):
        load_dataset(tmp_path, split="calibration")


def test_a_folder_without_splits_is_parted(folder: Path) -> None:
    train, validation = load_training_splits(folder)
    assert (len(train), len(validation)) == (5, 1)
    assert set(train.sample_ids).isdisjoint(validation.sample_ids)


def test_other_sizes_need_preprocessing(folder: Path) -> None:
    write(folder / "dog" / "9.png", np.zeros((5, 5, 3)))
    with pytest.raises(
        DataError, match=r"9\.png: the image has shape \(3, 5, 5\), the first one \(3, 6, 8\)"
    ):
        load_dataset(folder).batch([6])
    assert load_dataset(folder, size=4).batch([0, 6]).shape == (2, 3, 4, 4)
    assert load_dataset(folder, resize=5, crop=4, grey=True).batch([6]).shape == (1, 1, 4, 4)
    with pytest.raises(UsageError, match="exclude each other"):
        load_dataset(folder, resize=5, size=4)
    with pytest.raises(UsageError, match="no option 'sizes'"):
        load_dataset(folder, sizes=4)


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (33, 33), (31, 97)])
def test_resize_and_crop_are_torchvisions(size: tuple[int, int]) -> None:
    from torchvision import transforms

    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    reference = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(28), transforms.ToTensor()]
    )
    ours = Preprocessing(resize=32, crop=28).image(image)
    assert torch.equal(ours, reference(image))


def test_png_masks_go_through_the_same_geometry(folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((6, 8))
    mask[:3, :4] = 7
    write(tmp_path / "masks" / "cat" / "0.png", mask)
    dataset = load_dataset(folder, masks=tmp_path / "masks", crop=4)
    masks = dataset.masks([0, 1])
    assert masks is not None
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:2, :2] = True  # rows 1..4 and columns 2..5 are kept
    assert torch.equal(masks[0], expected)
    assert not masks[1].any(), "no mask for this image"
    write(tmp_path / "masks" / "cat" / "1.png", np.zeros((3, 3)))
    with pytest.raises(DataError, match="the mask is 3x3, its image 8x6"):
        dataset.masks([1])


def test_voc_and_coco_boxes_paint_the_same_mask(folder: Path, tmp_path: Path) -> None:
    voc = tmp_path / "voc"
    voc.mkdir()
    # VOC: pixels 3..5 of 1..8 in x, 2..4 in y; COCO: left 2, top 1, 3 wide, 3 high.
    (voc / "1.xml").write_text(
        "<annotation><object><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>5</xmax><ymax>4</ymax>"
        "</bndbox></object></annotation>"
    )
    coco = tmp_path / "boxes.json"
    coco.write_text(
        json.dumps(
            {
                "images": [{"id": 5, "file_name": "dog/1.png"}],
                "annotations": [{"image_id": 5, "bbox": [2, 1, 3, 3]}],
            }
        )
    )
    expected = torch.zeros(6, 8, dtype=torch.bool)
    expected[1:4, 2:5] = True
    for source in (voc, coco):
        masks = load_dataset(folder, masks=source).masks([4])
        assert masks is not None
        assert torch.equal(masks[0], expected)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.xml", "<annotation><bndbox></bndbox></annotation>", "no Pascal-VOC annotation"),
        ("x.xml", "<annotation>", "no Pascal-VOC annotation"),
        ("x.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a/>', "document type"),
        ("x.txt", "", "no masks are there"),
    ],
)
def test_bad_annotations_are_refused(
    folder: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_dataset(folder, masks=tmp_path / "bad")


def test_a_bad_coco_file_is_refused(folder: Path, tmp_path: Path) -> None:
    for content in ("{", "[]", '{"images": [], "annotations": [{"bbox": [1]}]}'):
        (tmp_path / "c.json").write_text(content)
        with pytest.raises(DataError, match="no COCO annotation file"):
            load_dataset(folder, masks=tmp_path / "c.json")


def test_class_names_must_be_the_folders(folder: Path) -> None:
    assert load_dataset(folder, class_names=["dog", "cat"]).labels.tolist() == [1, 1, 1, 0, 0, 0]
    with pytest.raises(DataError, match="missing: bird; not named: dog"):
        load_dataset(folder, class_names=["bird", "cat"])


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class subfolders"):
        load_dataset(tmp_path)
    write(tmp_path / "0.png", np.zeros((2, 2)))
    with pytest.raises(DataError, match="images lie directly in the folder"):
        load_dataset(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no images below"):
        load_dataset(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(f"folder:{tmp_path / 'nowhere'}")
