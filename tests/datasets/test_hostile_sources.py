"""Data whose own code fails or lies: one line that says where, and no number."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Subset

from robench.datasets import Dataset, from_torch, load_dataset
from robench.errors import DataError, UsageError


class Lying:
    """A map-style data set whose parts fail or lie."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def __len__(self) -> int:
        found = self.changes.get("length", 4)
        if isinstance(found, Exception):
            raise found
        return found

    def __getitem__(self, index: int) -> Any:
        if index == self.changes.get("fails_at", 4):
            raise self.changes.get("error", IndexError("list index out of range"))
        return torch.full((1, 4, 4), index / 4), index % 2

    @property
    def classes(self) -> Any:
        if "classes" in self.changes:
            raise self.changes["classes"]
        return None


class Failing(IterableDataset[Any]):
    def __init__(self, first: Any = None, error: Any = None) -> None:
        self.first, self.error = first, error

    def __iter__(self) -> Any:
        if self.first is None:
            raise self.error
        yield self.first
        raise self.error


ONE = (torch.ones(1, 4, 4), 0)
HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "length fails": (lambda: Lying(length=RuntimeError("no\nlength")), "Lying: cannot be read: no length"),
    "length is negative": (lambda: Lying(length=-1), "cannot be read"),
    "length is a text": (lambda: Lying(length="4"), "cannot be read"),
    "too long": (lambda: Lying(length=6), "sample 4: cannot be read: list index out of range"),
    "far too long": (lambda: Lying(length=10**15), "sample 4: cannot be read"),
    "item fails": (lambda: Lying(fails_at=2, error=KeyError(7)), "sample 2: cannot be read: KeyError 7"),
    "attribute fails": (lambda: Lying(classes=OSError(5, "gone")), "cannot be read: .*gone"),
    "length of a loader's": (lambda: DataLoader(Lying(length=RuntimeError("x y"))), "cannot be read: x y"),
    "a loader that is too long": (lambda: DataLoader(Lying(length=6)), "sample 4"),
    "a loader far too long": (lambda: DataLoader(Lying(length=10**15)), "sample 4: cannot be read"),
    "a subset beyond the end": (lambda: Subset(Lying(fails_at=9), [0, 9]), "sample 1: cannot be read"),
    "stream fails": (lambda: Failing(error=ZeroDivisionError("a b")), "cannot be read: a b"),
    "stream fails later": (lambda: Failing(ONE, ValueError("a b")), "item 1: cannot be read: a b"),
    "loader of a stream": (lambda: DataLoader(Failing(ONE, ValueError("a b"))), "cannot be read: .*a b"),
    "a batch with one label": (
        lambda: DataLoader(Lying(), collate_fn=lambda rows: rows[0]), "a batch of images has one label"
    ),
    "a dictionary that fails": (lambda: Broken(), "cannot be read: broken dictionary"),
}  # fmt: skip


class Broken(dict[str, Any]):
    def get(self, *_: Any) -> Any:
        raise RuntimeError("broken dictionary")

    def __iter__(self) -> Any:
        raise RuntimeError("broken dictionary")


@pytest.mark.parametrize("name", HOSTILE)
def test_sources_that_fail_or_lie_end_in_one_line(name: str) -> None:
    make, words = HOSTILE[name]
    with pytest.raises(DataError, match=words) as refused:
        from_torch(make())
    assert "\n" not in str(refused.value)


def test_a_length_that_is_too_short_is_what_there_is() -> None:
    for source in (Lying(length=3), DataLoader(Lying(length=3), shuffle=True)):
        assert list(from_torch(source).sample_ids)[-1] == "torch/000002"


class TwiceNamed(Lying):
    classes = ("crane", "crane")  # type: ignore[assignment]


def test_names_of_classes_that_repeat_are_told_apart_by_their_number() -> None:
    assert from_torch(TwiceNamed()).class_names == ("crane 0", "crane 1")
    for names in (["a", "a"], "a,a"):
        with pytest.raises((DataError, UsageError), match=r"named twice|names of classes repeat"):
            from_torch({"x": torch.rand(2, 1, 4, 4), "y": [0, 1], "class_names": names})
    with pytest.raises(DataError, match="names of classes repeat: 'a'"):
        from_torch(Lying(), class_names=["a", "a"])


def test_texts_keep_the_nul_that_they_end_in() -> None:
    images = torch.rand(2, 1, 4, 4)
    read = from_torch({"x": images, "y": ["a", "a\0"], "ids": ["x\0", "x"]})
    assert list(read.sample_ids) == ["x\0", "x"]
    assert read.class_names == ("a", "a\0")
    assert read.labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="sample ids repeat"):
        from_torch({"x": images, "y": [0, 1], "ids": np.array(["x\0", "x"])})


class Foreign(Dataset):
    """A data set from outside robench that gives something else than it says."""

    def __init__(self, given: Any) -> None:
        super().__init__(
            name="x", split="test", sample_ids=["a", "b"], labels=torch.tensor([0, 1]),
            class_names=["p", "q"], input_shape=(1, 4, 4),
        )  # fmt: skip
        self.given = given

    def _read(self, indices: list[int]) -> Any:
        return self.given[indices]


@pytest.mark.parametrize(
    "given, words",
    [
        (torch.rand(2, 1, 4, 4).double(), "read as torch.float64"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "read as torch.uint8"),
        (torch.rand(2, 1, 4, 5), r"samples of \(1, 4, 4\) are read as .*\(2, 1, 4, 5\)"),
        (torch.rand(2, 1, 4, 4) * 255, r"not \[0, 1\]"),
        (torch.rand(2, 1, 4, 4) * float("nan"), "nan"),
    ],
)
def test_what_a_data_set_from_outside_gives_is_checked(given: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Foreign(given).batch([0, 1])


def test_a_function_that_gives_no_data_set_is_refused() -> None:
    for name, words in (("no_data_set", "gave list, no robench.datasets.Dataset"),
                        ("that_fails", "cannot be read: it fails here")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            load_dataset(f"{__name__}:{name}", trust_code=True)


def no_data_set(split: str, **_: Any) -> Any:
    return []


def that_fails(split: str, **_: Any) -> Any:
    raise RuntimeError("it fails\nhere")


@pytest.mark.parametrize("white", [0, -1, float("inf"), float("nan"), "255", [255]])
def test_a_white_that_is_no_positive_number(white: Any) -> None:
    images, labels = torch.rand(2, 1, 4, 4), [0, 1]
    for source in ((images, labels), list(zip(images, labels, strict=True))):
        with pytest.raises(UsageError, match=r"white is .*, no positive number"):
            from_torch(source, white=white)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"ids": ["\ud800", "b"]}, "the sample id '.ud800' is no valid Unicode"),
        ({"class_names": ["a", "\udcff"]}, "the name of a class .* is no valid Unicode"),
        ({"ids": [None, "b"]}, "'ids' is no list of texts"),
        ({"y": [0, "a"]}, "some are texts and some are not"),
        ({"x": torch.rand(2, 1, 0, 4)}, "have no pixels"),
        ({"x": torch.rand(2, 1, 4, 0)}, "have no pixels"),
    ],
)
def test_names_labels_and_shapes_that_are_none(given: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        from_torch({"x": torch.rand(2, 1, 4, 4), "y": [0, 1], **given})
    assert str(refused.value).isprintable()
    str(refused.value).encode()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have names in Unicode only")
@pytest.mark.parametrize("name", [b"a/\xff.png", b"\xfe/0.png"])
def test_names_of_files_that_are_no_unicode_are_refused(tmp_path: Path, name: bytes) -> None:
    for file in (name, b"b/0.png"):
        path = os.path.join(os.fsencode(tmp_path), file)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            Image.new("L", (2, 2), 200).save(stream, "PNG")
    with pytest.raises(DataError, match="is no valid Unicode") as refused:
        load_dataset(tmp_path)
    str(refused.value).encode()


def test_labels_beside_a_file_that_has_its_own_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((2, 1, 4, 4)), y=[0, 1])
    with pytest.raises(UsageError, match="this one holds its own labels"):
        load_dataset(tmp_path / "d.npz", labels="other.npy")
