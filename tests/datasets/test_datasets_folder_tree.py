"""Which images of a folder are samples of which class: links, litter, splits, and generated trees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robench.datasets import FolderDataset, load_dataset
from robench.errors import DataError, UnknownNameError, UsageError


def image(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2), (level, level, level)).save(path, "PNG")
    return path


def tree(root: Path, *files: str) -> Path:
    """Images under these paths; a path that ends in / is a folder."""
    for file in files:
        if file.endswith("/"):
            (root / file).mkdir(parents=True, exist_ok=True)
        else:
            image(root / file)
    return root


@pytest.mark.parametrize(
    "extra",
    [
        "__MACOSX/0/._0.png",
        "__MACOSX/x.png",
        "a/.ipynb_checkpoints/0-checkpoint.png",
        "a/b/.cache/deep/0.png",
        "a/@eaDir/0.png/SYNO_THUMB.jpg",
        "@eaDir/x.jpg",
        "lost+found/",
        "$RECYCLE.BIN/x.png",
        "System Volume Information/",
        "a/Thumbs.db/x.png",
        "a/._0.png",
        "#recycle/b/0.png",
        "beside.png",
    ],
)
def test_what_systems_and_tools_leave_is_not_read(tmp_path: Path, extra: str) -> None:
    dataset = FolderDataset.open(tree(tmp_path / "d", "a/0.png", "a/b/1.png", "b/0.png", extra))
    assert list(dataset.sample_ids) == ["a/0.png", "a/b/1.png", "b/0.png"]
    assert dataset.class_names == ("a", "b")


def test_a_hidden_place_above_the_folder_hides_nothing(tmp_path: Path) -> None:
    assert (
        len(FolderDataset.open(tree(tmp_path / ".data" / "lost+found", "a/0.png", "b/0.png"))) == 2
    )


@pytest.mark.parametrize("content", ["", "notes.txt", "Thumbs.db", ".hidden.png", "@eaDir/x.png"])
def test_a_class_folder_without_images_is_named(tmp_path: Path, content: str) -> None:
    root = tree(tmp_path / "d", "a/0.png", "b/0.png", "c/")
    if content:
        image(root / "c" / content)
    with pytest.raises(DataError, match=r"/c: the class folder holds no images.*class_names"):
        FolderDataset.open(root)
    said = FolderDataset.open(root, class_names="c,b,a")
    assert (said.class_names, said.labels.tolist()) == (("c", "b", "a"), [2, 1])


def test_links_are_what_they_lead_to(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "a/0.png", "b/0.png")
    tree(tmp_path / "far", "1.png", "deep/2.png")
    (root / "b" / "one.png").symlink_to(tmp_path / "far" / "1.png")
    (root / "b" / "more").symlink_to(tmp_path / "far")
    (root / "c").symlink_to(tmp_path / "far", target_is_directory=True)
    dataset = FolderDataset.open(root)
    assert list(dataset.sample_ids) == [
        *("a/0.png", "b/0.png", "b/more/1.png", "b/more/deep/2.png", "b/one.png"),
        *("c/1.png", "c/deep/2.png"),
    ]
    assert dataset.labels.tolist() == [0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "link, target, words",
    [
        ("a/x.png", "nowhere.png", "leads nowhere"),
        ("a/sub", "nowhere", "leads nowhere"),
        ("c", "nowhere", "leads nowhere"),
        ("a/up", "..", "leads back"),
        ("a/self", ".", "leads back"),
        ("a/loop", "loop", "leads nowhere"),
    ],
)
def test_links_that_lead_nowhere_or_back_are_refused(
    tmp_path: Path, link: str, target: str, words: str
) -> None:
    root = tree(tmp_path / "d", "a/0.png", "b/0.png")
    (root / link).symlink_to(target)
    with pytest.raises(DataError, match=f"{link}.*{words}"):
        FolderDataset.open(root)


def test_what_is_called_an_image_and_is_no_file(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "a/0.png", "b/0.png", "b/folder.png/1.png")
    assert len(FolderDataset.open(root)) == 3, "a folder is a folder whatever it is called"
    os.mkfifo(root / "a" / "pipe.png")
    with pytest.raises(DataError, match=r"a/pipe\.png: is no file"):
        FolderDataset.open(root)


SPLITS: dict[str, tuple[tuple[str, ...], str, Any]] = {
    "train among classes": (("bus/0.png", "car/0.png", "train/0.png"), "test", "bus car train"),
    "train asked for": (("bus/0.png", "train/0.png", "train/x/1.png"), "train", "bus train"),
    "test beside one class": (("cat/0.png", "test/0.png"), "test", "cat test"),
    "a split": (("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"), "test", "a b"),
    "a split of another name": (("train/a/0.png", "train/b/0.png", "fold1/a/0.png",
                                 "fold1/b/0.png"), "fold1", "a b"),
    "other folders like it": (("train/a/0.png", "train/b/0.png", "fold1/a/0.png"), "train", "a b"),
    "other folders without images": (("train/a/0.png", "train/b/0.png", "docs/"), "train", "a b"),
    "an unlabelled test part": (("train/a/0.png", "train/b/0.png", "test/0.png"), "train", "a b"),
    "that part": (("train/a/0.png", "train/b/0.png", "test/0.png"), "test",
                  "/test: the split holds no class folders"),
    "no such split": (("train/a/0.png", "train/b/0.png"), "test", "no split 'test'.*: train"),
    "splits without classes": (("train/0.png", "test/0.png"), "test",
                               "images lie directly in test, train.*class_names=test,train"),
    "classes with subfolders": (("bus/city/0.png", "train/steam/0.png"), "train",
                                "train could be a split, and could be a class beside bus"),
    "capitals": (("Train/a/0.png", "Train/b/0.png", "Test/a/0.png", "Test/b/0.png"), "test", "a b"),
    "capitals that are asked for": (("TRAIN/a/0.png", "TRAIN/b/0.png"), "train", "a b"),
    "both": (("Test/a/0.png", "Test/b/0.png", "test/a/0.png", "test/b/0.png", "test/c/0.png"),
             "test", "a b c"),
    "both, and neither is asked for": (("Test/a/0.png", "Test/b/0.png", "TEST/a/0.png",
                                        "TEST/b/0.png"), "test", "no split 'test'.*: TEST, Test"),
    "a class without test samples": (("train/a/0.png", "train/b/0.png", "train/c/0.png",
                                      "test/a/0.png", "test/c/0.png"), "test",
                                     "/test: the split has no class folder 'b'.*class_names"),
    "classes in other letters": (("train/Cat/0.png", "train/Dog/0.png", "test/cat/0.png",
                                  "test/dog/0.png", "test/Dog/0.png"), "test",
                                 "no class folder 'Cat'"),
    "one folder around the splits": (("data/train/a/0.png", "data/test/a/0.png"), "test",
                                     "one folder, with splits inside.*/data"),
    "unusual names": (("training_set/a/0.png", "training_set/b/0.png", "test_set/a/0.png",
                       "test_set/b/0.png"), "test",
                      "no split 'test'.*test_set, training_set; choose one with --split.*"
                      "class_names=test_set,training_set"),
    "one of them": (("training_set/a/0.png", "training_set/b/0.png", "test_set/a/0.png",
                     "test_set/b/0.png"), "test_set", "a b"),
    "folds without some classes": (("fold1/a/0.png", "fold1/b/0.png", "fold2/a/0.png"), "test",
                                   "no split 'test'.*: fold1, fold2"),
    "and images beside": (("training_set/a/0.png", "training_set/b/0.png", "test_set/a/0.png",
                           "test_set/b/0.png", "single/0.png"), "test",
                          "test_set, training_set could be a split, and could be a class beside single"),
    "classes with parts alike": (("cat/in/0.png", "cat/out/0.png", "dog/in/0.png", "dog/out/0.png"),
                                 "test", "class_names=cat,dog"),
    "two alike and one other": (("fold1/a/0.png", "fold1/b/0.png", "fold2/a/0.png", "fold2/b/0.png",
                                 "more/x/0.png"), "test", "fold1, fold2 could be a split.*beside more"),
    "classes one folder deeper": (("a/images/0.png", "b/images/0.png"), "test", "a b"),
    "classes with a part alike": (("cat/x/0.png", "cat/0.png", "dog/x/0.png", "dog/1.png"), "test",
                                  "cat dog"),
    "classes of which some have parts": (("a/x/0.png", "b/x/0.png", "c/0.png"), "test", "a b c"),
    "splits inside classes": (("a/train/0.png", "a/test/0.png", "b/train/0.png"), "test",
                              "splits lie inside the class folders.*test/CLASS"),
    "a folder in each split": (("training_set/training_set/a/0.png", "training_set/training_set/b/0.png",
                                "test_set/test_set/a/0.png", "test_set/test_set/b/0.png"), "test_set",
                               "a b"),
    "and neither is asked for": (("training_set/training_set/a/0.png", "test_set/test_set/a/0.png",
                                  "training_set/training_set/b/0.png"), "test",
                                 "no split 'test'.*: test_set, training_set"),
    "images in each": (("training/images/a/0.png", "training/images/b/0.png", "testing/images/a/0.png",
                        "testing/images/b/0.png"), "training", "a b"),
    "any one folder in each": (("fold1/x/a/0.png", "fold1/x/b/0.png", "fold2/y/a/0.png",
                                "fold2/y/b/0.png"), "fold2", "a b"),
    "classes that say the split": (("Train_set/cats_train/0.png", "Train_set/dogs_train/0.png",
                                    "Test_set/cats_test/0.png", "Test_set/dogs_test/0.png"),
                                   "Test_set", "/Test_set: the split has no class folder 'cats_train'"),
    "a part to be predicted": (("seg_train/seg_train/a/0.png", "seg_train/seg_train/b/0.png",
                                "seg_test/seg_test/a/0.png", "seg_test/seg_test/b/0.png",
                                "seg_pred/seg_pred/0.png"), "seg_test", "a b"),
    "unusual names, other letters": (("training_set/Cat/0.png", "training_set/Dog/0.png",
                                      "test_set/cat/0.png", "test_set/dog/0.png"), "test_set",
                                     "no class folder 'Cat'.*other letters"),
    "folds, other letters": (("fold1/Cat/0.png", "fold1/Dog/0.png", "fold2/cat/0.png",
                              "fold2/dog/0.png"), "test", "no split 'test'.*: fold1, fold2"),
    "letters and capitals": (("train/a/0.png", "train/A/0.png", "test/a/0.png", "test/A/0.png"), "test",
                             "A a"),
    "unusual splits without classes": (("training/0.png", "testing/0.png"), "test",
                                       "images lie directly in testing, training"),
    "numbered": (("train/0.png", "test1/0.png"), "test", "images lie directly in test1, train"),
    "one folder deeper": (("train/images/0.png", "test/images/0.png"), "test", "images lie directly"),
    "splits and classes in one name": (("trainA/0.png", "trainB/0.png", "testA/0.png", "testB/0.png"),
                                       "test", "images lie directly in testA, testB, trainA, trainB"),
    "the same, and a class is lacking": (("cats_train/0.png", "cats_test/0.png", "dogs_train/0.png"),
                                         "test", "images lie directly in cats_test, cats_train,"),
    "beside a class": (("bus/0.png", "train/0.png", "test/0.png"), "test", "images lie directly in"),
    "names that say splits alone": (("test_tube/0.png", "train_station/0.png", "evaluate/0.png"), "test",
                                    "evaluate test_tube train_station"),
    "one folder around": (("PetImages/Cat/0.png", "PetImages/Dog/0.png"), "test",
                          "one folder, with several inside.*/PetImages$"),
    "two folders around": (("x/y/train/a/0.png", "x/y/test/a/0.png"), "test",
                           "one folder, with splits inside.*/x/y"),
    "one class": (("cat/0.png", "cat/x/1.png"), "test", "1 class"),
    "images and masks": (("images/a/0.png", "images/b/0.png", "masks/a/0.png", "masks/b/0.png"), "test",
                         "images and masks could be.*/images; .*class_names=images,masks"),
    "images and masks in classes": (("a/images/0.png", "a/masks/0.png", "b/0.png"), "test",
                                    "/a: images and masks lie in one class folder.*class_names=a,b"),
    "a folder that repeats the others": (("a/0.png", "b/0.png", "more/a/0.png", "more/b/0.png"), "test",
                                         "more holds folders that are called like those beside it"),
    "masks beside images": (("a/b (1).png", "a/b (1)_mask.png", "b/0.png"), "test",
                            r"a/b \(1\)_mask.png: lies beside the image whose mask it is"),
    "second masks beside images": (("a/0.png", "a/0-seg-1.png", "b/0.png"), "test",
                                   "a/0-seg-1.png: lies beside"),
    "names like masks": (("a/0_mask.png", "a/mask.png", "with_mask/0.png", "no_mask/0.png"), "test",
                         "a no_mask with_mask"),
    "images of printers": (("label printer/0.png", "photo printer/0.png"), "test",
                           "label printer photo printer"),
    "only some have labels": (("labeled/a/0.png", "labeled/b/0.png", "unlabeled/0.png"), "test",
                              "no split 'test'.*: labeled;"),
    "images in one folder": (("images/0.png", "images/1.png"), "test", "images lie directly in images"),
    "folds around splits": (("fold_0/train/a/0.png", "fold_0/test/a/0.png", "fold_1/train/a/0.png"),
                            "test", "name one as the data set, such as .*/fold_0"),
    "images and masks in splits": (("train/img/0.png", "train/GroundTruth/0.png", "test/img/0.png",
                                    "test/GroundTruth/0.png"), "test", "img and GroundTruth could be"),
    "splits in unusual names inside classes": (("a/training/0.png", "a/testing/0.png",
                                                "b/cats_test/0.png", "b/cats_train/0.png"), "test",
                                               "splits lie inside the class folders"),
    "litter is no class folder": (("bus/0.png", "train/0.png", "train/.x/1.png"), "test",
                                  "bus train"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "split", "expected"), SPLITS.values(), ids=SPLITS)
def test_splits_and_classes_that_are_called_like_them(
    tmp_path: Path, files: tuple[str, ...], split: str, expected: str
) -> None:
    root = tree(tmp_path / "d", *files)
    try:
        seen = " ".join(FolderDataset.open(root, split=split).class_names)
    except (DataError, UnknownNameError) as error:
        with pytest.raises(type(error), match=expected):
            raise
    else:
        assert seen == expected


def test_who_names_the_classes_says_that_train_is_one(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "bus/city/0.png", "train/steam/0.png")
    for split in ("train", "test"):
        dataset = FolderDataset.open(root, split=split, class_names=["train", "bus"])
        assert dataset.labels.tolist() == [1, 0]


def test_who_names_the_classes_says_that_alike_folders_are_some(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "d", *(f"{name}/{part}/0.png" for name in ("dog", "cat") for part in "xy")
    )
    dataset = FolderDataset.open(root, class_names="dog,cat")
    assert dict(zip(dataset.sample_ids, dataset.labels.tolist(), strict=True)) == {
        "cat/x/0.png": 1,
        "cat/y/0.png": 1,
        "dog/x/0.png": 0,
        "dog/y/0.png": 0,
    }
    inner = tree(tmp_path / "e", "dog/Train/0.png", "dog/Test/0.png", "cat/Train/0.png")
    with pytest.raises(DataError, match="inside the class folders"):
        FolderDataset.open(inner, class_names="dog,cat")


def test_every_name_is_a_class_to_who_says_so(tmp_path: Path) -> None:
    for number, names in enumerate(
        (
            ["testA", "testB", "trainA", "trainB"],
            ["testing", "training"],
            ["images", "masks"],
            ["a/images", "a/masks", "b"],
            ["test_set/test_set/x", "training_set/training_set/x"],
        )
    ):
        root = tree(tmp_path / str(number), *(f"{name}/0.png" for name in names))
        classes = list(dict.fromkeys(name.split("/")[0] for name in names))
        dataset = FolderDataset.open(root, class_names=classes)
        assert list(dataset.sample_ids) == [f"{name}/0.png" for name in names]
        assert [classes[label] for label in dataset.labels] == [n.split("/")[0] for n in names]


def test_named_classes_are_looked_for_and_no_others(tmp_path: Path) -> None:
    root = tree(
        tmp_path / "d", "train/images/x/0.png", "train/images/y/0.png", "test/images/x/0.png"
    )
    inner = FolderDataset.open(root, class_names="y,x", split="train")
    assert dict(zip(inner.sample_ids, inner.labels.tolist(), strict=True)) == {
        "train/images/x/0.png": 1,
        "train/images/y/0.png": 0,
    }
    outer = FolderDataset.open(root, class_names="images,more", split="train")
    assert (outer.sample_ids, outer.labels.tolist()) == (inner.sample_ids, [0, 0])


def test_names_of_classes_can_be_copied_from_a_message(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "trainA/0.png", "testA/0.png", "a,b/0.png")
    with pytest.raises(DataError) as refused:
        FolderDataset.open(root)
    said = str(refused.value).rpartition("class_names=")[2]
    assert FolderDataset.open(root, class_names=said).class_names == ("a,b", "testA", "trainA")


def test_masks_are_no_class_and_have_to_belong_to_images(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "a/0.png", "b/0.png")
    Image.new("L", (2, 2), 255).save(image(root / "masks" / "a" / "0.png"))
    dataset = FolderDataset.open(root, masks=root / "masks")
    assert dataset.class_names == ("a", "b")
    masks = dataset.masks([0, 1])
    assert masks is not None
    assert masks.flatten(1).all(1).tolist() == [True, False]
    with pytest.raises(DataError, match=r"none of the masks belongs to an image.*a/0\.png"):
        FolderDataset.open(root, masks=root / "masks" / "a")


@pytest.mark.parametrize(
    "mask",
    [
        Image.new("RGB", (2, 2), (0, 0, 1)),
        Image.new("RGBA", (2, 2), (1, 0, 0, 0)),
        Image.fromarray(np.full((2, 2), 256, np.uint16)),
        Image.new("1", (2, 2), 1),
        Image.new("L", (2, 2), 1),
    ],
    ids=["blue", "transparent", "16-bit", "1-bit", "grey"],
)
def test_any_value_above_0_is_the_object(tmp_path: Path, mask: Image.Image) -> None:
    root = tree(tmp_path / "d", "a/0.png", "b/0.png")
    mask.save(image(tmp_path / "masks" / "a" / "0.png"))
    found = FolderDataset.open(root, masks=tmp_path / "masks").masks([0])
    assert found is not None
    assert found.all()


def test_folders_of_some_of_the_classes(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "3/0.png", "05/0.png", "8/0.png")
    plain = FolderDataset.open(root)
    assert (plain.class_names, plain.labels.tolist()) == (("3", "05", "8"), [1, 0, 2])
    some = FolderDataset.open(root, num_classes=10)
    assert dict(zip(some.sample_ids, some.labels.tolist(), strict=True)) == {
        "3/0.png": 3,
        "05/0.png": 5,
        "8/0.png": 8,
    }
    assert some.num_classes == 10
    named = FolderDataset.open(root, class_names="8,9,3,05")
    assert named.labels.tolist() == [3, 2, 0]
    for options, words in (
        ({"num_classes": 8}, "not the numbers from 0 to 7.*class_names"),
        ({"class_names": "3,8"}, "not named: 05"),
        ({"class_names": "3,05,8", "num_classes": 4}, "3 class names for 4 classes"),
        ({"class_names": "3,05,8,3"}, "named twice"),
    ):
        with pytest.raises((DataError, UsageError), match=words):
            FolderDataset.open(root, **options)


def test_classes_called_by_numbers_are_in_their_order(tmp_path: Path) -> None:
    root = tmp_path / "d"
    for k in range(12):
        image(root / str(k) / "0.png", 20 * k)
    dataset = FolderDataset.open(root)
    levels = (255 * dataset.batch(range(12)).mean((1, 2, 3))).round().long().tolist()
    assert dataset.labels.tolist() == [level // 20 for level in levels]


@pytest.mark.parametrize("options", [{"grey": "maybe"}, {"size": "big"}, {"masks": ["a", "b"]},
                                     {"white": 0}, {"num_classes": "ten"}])  # fmt: skip
def test_an_option_of_another_type_is_named(tmp_path: Path, options: dict[str, Any]) -> None:
    root = tree(tmp_path / "d", "a/0.png", "b/0.png")
    with pytest.raises(UsageError, match=next(iter(options))):
        load_dataset(root, **options)


def test_options_are_of_the_type_that_is_declared(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", "a/0.png", "b/0.png")
    for no, yes in (("no", "yes"), ("off", "on"), ("false", "true"), (0, 1)):
        assert load_dataset(root, grey=no).input_shape == (3, 2, 2)
        assert load_dataset(root, grey=yes).input_shape == (1, 2, 2)
    assert load_dataset(root, name=3).name == "3"
    with pytest.raises(DataError, match="2024: no masks are there"):
        load_dataset(root, masks=2024)
