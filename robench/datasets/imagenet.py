"""ImageNet (ILSVRC 2012): the field's 5,000 validation images, or all of a part.

The archives are licensed and cannot be fetched. They are expected in, or unpacked below,
``root/imagenet``; torchvision unpacks them.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from robench.datasets.image_files import FolderDataset, ImageFiles
from robench.datasets.object_masks import MaskSource, open_masks
from robench.datasets.preprocessing import PREPROCESSING_OPTIONS, Preprocessing
from robench.errors import DataError, UsageError, one_line
from robench.files import data_folder, read_text
from robench.registry import unknown_name

_SPLITS = {"train": "train", "test": "val", "val": "val"}
"""Split → folder."""

_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}

_LISTED = re.compile(r"(?:.*/)?(n\d{8})/([^/\s]+\.(?:JPEG|jpeg|jpg|png))", re.ASCII)


def load_imagenet(
    split: str = "test",
    *,
    root: Path | None = None,
    download: bool = False,
    samples: str | Path | None = None,
    masks: str | Path | None = None,
    **preparation: Any,
) -> ImageFiles:
    """ILSVRC 2012 (Russakovsky et al., 2015).

    Args:
        split: ``test``: the 5,000 images of the validation part that RobustBench's leaderboards
            use; ``val``: all 50,000; ``train``.
        root: where data sets are kept; class folders are in ``root/imagenet/val`` or ``train``.
        download: cannot be done.
        samples: a file with one ``n01440764/ILSVRC2012_val_00000293.JPEG`` a line, instead of
            the 5,000 of ``test``.
        masks: where the objects are, such as the folder of Pascal-VOC boxes that
            ``ILSVRC2012_bbox_val_v3.tgz`` unpacks to.
        preparation: ``size``, ``resize``, ``crop``, ``interpolation``, as for
            :meth:`Preprocessing.of`; none of them: the shorter side to 256, a crop of 224.

    Raises:
        UnknownNameError: another split.
        UsageError: a wrong option.
        DataError: images are not there, class folders are missing, or the list has others.
    """
    if split not in _SPLITS:
        raise unknown_name("split of imagenet", split, list(_SPLITS))
    unknown = sorted(preparation.keys() - PREPROCESSING_OPTIONS)
    if unknown:
        raise UsageError(f"data set 'imagenet' has no option {unknown[0]!r}")
    if samples is not None and split != "test":
        raise UsageError(f"a list of samples belongs to the split 'test', not {split!r}")
    part = _SPLITS[split]
    home = data_folder(root) / "imagenet"
    _unpack(home, part)
    common: dict[str, Any] = {
        "name": "imagenet",
        "split": split,
        "class_names": imagenet_classes(),
        # The field's figures are of the pixels as stored, whatever their EXIF orientation, and filled
        # up where they are smaller than a crop.
        "preprocessing": Preprocessing.of(
            **(preparation or {"resize": 256, "crop": 224}), upright=False, pad=True
        ),
        "masks": None if masks is None else _masks(Path(masks)),
        "id_prefix": f"{part}/",
    }
    if split != "test":
        missing = [wnid for wnid in imagenet_classes() if not (home / part / wnid).is_dir()]
        if missing:
            raise DataError(
                f"the class folders differ: {len(missing)} are missing, first {missing[0]}",
                where=home / part,
            )
        return FolderDataset(home / part, **common)
    files = sorted(imagenet_subset() if samples is None else _read_list(Path(samples)))
    missing = [file for file in files if not (home / part / file).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of the listed images are not there, first {missing[0]}",
            where=home / part,
            hint="The images lie in folders by class, as torchvision unpacks them",
        )
    position = {wnid: label for label, wnid in enumerate(imagenet_classes())}
    labels = [position[file.partition("/")[0]] for file in files]
    return ImageFiles(home / part, files, labels, **common)


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 WordNet ids in label order, which is their alphabetic order."""
    return tuple(wnid for wnid, _ in _table())


@cache
def imagenet_subset() -> tuple[str, ...]:
    """The 5,000 files, as ``n01440764/ILSVRC2012_val_00000293.JPEG``."""
    return tuple(
        f"{wnid}/ILSVRC2012_val_{number:08d}.JPEG"
        for wnid, numbers in _table()
        for number in numbers
    )


def _table() -> list[tuple[str, list[int]]]:
    text = resources.files("robench.datasets").joinpath("imagenet_subset.txt").read_text("utf-8")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return [(wnid, [int(number) for number in numbers]) for wnid, *numbers in rows]


def _unpack(home: Path, part: str) -> None:
    if (home / part).is_dir():
        return
    archive = home / _ARCHIVES[part]
    if archive.is_file():
        # Seconds to import; needed to unpack only.
        from torchvision.datasets import ImageNet

        try:
            ImageNet(str(home), split=part)
        except Exception as error:  # A damaged archive makes the reader raise almost anything.
            raise DataError(f"cannot be unpacked: {one_line(error)}", where=archive) from error
        return
    raise DataError(
        "imagenet is not there, and cannot be downloaded: its licence forbids to distribute it",
        where=home / part,
        hint=f"Put the class folders there, or {archive.name} and ILSVRC2012_devkit_t12.tar.gz "
        f"into {home}",
    )


def _read_list(path: Path) -> list[str]:
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"the list of samples cannot be read: {error}", where=path) from error
    known = set(imagenet_classes())
    found: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _LISTED.fullmatch(text)
        if match is None or match[1] not in known:
            raise DataError(
                f"line {number} names no image of a class: {text[:80]!r}",
                where=path,
                hint="Write n01440764/ILSVRC2012_val_00000293.JPEG",
            )
        found[f"{match[1]}/{match[2]}"] = None
    if not found:
        raise DataError("the list of samples is empty", where=path)
    return list(found)


def _masks(path: Path) -> MaskSource:
    # The archive of boxes has a folder val of its own.
    inner = path / "val"
    return open_masks(inner if inner.is_dir() else path)
