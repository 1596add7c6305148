"""Tiny-ImageNet (Stanford's CS231n, 2015): 200 classes of ImageNet, 64x64, in its own layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robench.datasets.image_files import ImageFiles
from robench.datasets.object_masks import Box, BoxMasks
from robench.datasets.preprocessing import Preprocessing
from robench.errors import DataError
from robench.files import data_folder, read_text
from robench.registry import unknown_name

_FOLDERS = ("tiny-imagenet-200", "tiny-imagenet")


def load_tiny_imagenet(
    split: str = "test",
    *,
    root: Path | None = None,
    download: bool = False,
    **preparation: Any,
) -> ImageFiles:
    """100,000 training images, and as ``test`` the 10,000 of the published validation part.

    The labels of its own test part were never published. Classes count in the order of their
    WordNet ids, as in the folders that most networks were trained from, not in that of
    ``wnids.txt``. Its boxes are the objects' masks.

    Args:
        split: ``train`` or ``test``.
        root: where data sets are kept; the archive is unpacked below it.
        download: is not done.
        preparation: as for :meth:`Preprocessing.of`; none: 64x64 as it is.

    Raises:
        UnknownNameError: another split.
        UsageError: a wrong option.
        DataError: the files are not there or not as published.
    """
    if split not in ("train", "test"):
        raise unknown_name("split of tiny-imagenet", split, ["train", "test"])
    base = data_folder(root)
    home = next((base / n for n in _FOLDERS if (base / n / "wnids.txt").is_file()), None)
    if home is None:
        raise DataError(
            "tiny-imagenet is not there, and is not downloaded: no hash of it is published",
            where=base / _FOLDERS[0],
            hint="Fetch tiny-imagenet-200.zip from http://cs231n.stanford.edu and unpack it there",
        )
    preprocessing = Preprocessing.of(**preparation)
    wnids = sorted(_read(home / "wnids.txt").split())
    position = {wnid: label for label, wnid in enumerate(wnids)}
    if len(position) != len(wnids):
        raise DataError("a class is listed twice", where=home / "wnids.txt")
    found = list(_training(home, wnids) if split == "train" else _validation(home, position))
    found.sort(key=lambda entry: entry[0])
    return ImageFiles(
        home,
        [file for file, _, _ in found],
        [position[wnid] for _, wnid, _ in found],
        name="tiny-imagenet",
        split=split,
        class_names=_class_names(home, wnids),
        preprocessing=preprocessing,
        masks=BoxMasks({file.rpartition(".")[0]: [box] for file, _, box in found}),
    )


def _training(home: Path, wnids: list[str]) -> Iterator[tuple[str, str, Box]]:
    for wnid in wnids:
        place = f"train/{wnid}/{wnid}_boxes.txt"
        for name, *numbers in _rows(home / place, 5):
            yield f"train/{wnid}/images/{name}", wnid, _box(numbers, home / place)


def _validation(home: Path, position: dict[str, int]) -> Iterator[tuple[str, str, Box]]:
    path = home / "val/val_annotations.txt"
    for name, wnid, *numbers in _rows(path, 6):
        if wnid not in position:
            raise DataError(f"{name} is of a class {wnid!r} that wnids.txt has not", where=path)
        yield f"val/images/{name}", wnid, _box(numbers, path)


def _box(numbers: list[str], path: Path) -> Box:
    try:
        left, top, right, bottom = (int(number) for number in numbers)
    except ValueError as error:
        raise DataError(f"no box: {' '.join(numbers)}", where=path) from error
    # They count pixels from 0 and include the last one.
    return left, top, right + 1, bottom + 1


def _rows(path: Path, fields: int) -> Iterator[list[str]]:
    for number, line in enumerate(_read(path).splitlines(), start=1):
        row = line.split("\t")
        if len(row) != fields or "/" in row[0] or row[0] in ("", ".", ".."):
            raise DataError(f"line {number} is not as published", where=path)
        yield row


def _class_names(home: Path, wnids: list[str]) -> list[str]:
    """The first word for each class; its WordNet id too where two classes share a word."""
    path = home / "words.txt"
    if not path.is_file():
        return wnids
    words = dict.fromkeys(wnids, "")
    for line in _read(path).splitlines():
        wnid, _, text = line.partition("\t")
        if wnid in words:
            words[wnid] = text.split(",")[0].strip()
    often = Counter(words.values())
    return [
        word if word and often[word] == 1 else f"{word} {wnid}".strip()
        for wnid, word in words.items()
    ]


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be read: {error}",
            where=path,
            hint="The archive's own layout is expected; a rearranged copy is read as a folder",
        ) from error
