"""A folder of images, one subfolder a class, read as it is asked for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from robench.datasets.base import Dataset
from robench.datasets.object_masks import MaskSource, open_masks
from robench.datasets.preprocessing import Preprocessing
from robench.errors import DataError, UnknownNameError, UsageError

__all__ = ["IMAGE_SUFFIXES", "FolderDataset"]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test", "val")}
"""Subfolders that may hold a split, best first. Some sets publish only train and val."""


class FolderDataset(Dataset):
    """Images below ``root/<class>/``; nothing but the list of files is kept in memory.

    Ids are paths relative to ``root`` with ``/`` and composed Unicode, sorted by code point:
    the same on every operating system. Files and folders that start with a dot are skipped.

    Args:
        root: the folder whose subfolders are the classes.
        name, split: as it reads in records.
        preprocessing: resize, crop, channels; the default reads RGB as it is.
        class_names: the classes in label order; default: the subfolders, sorted.
        masks: where the objects are, if known.
        id_prefix: put before every id, so that splits of one set never share ids.

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
        folders = {_normal(p.name): p for p in root.iterdir() if p.is_dir() and _visible(p)}
        classes = _classes(root, sorted(folders), class_names)
        files: list[tuple[str, Path, int]] = []
        for label, class_name in enumerate(classes):
            folder = folders[class_name]
            files += [
                (_normal(path.relative_to(root).as_posix()), path, label)
                for path in folder.rglob("*")
                if path.suffix.lower() in IMAGE_SUFFIXES and _visible(path) and path.is_file()
            ]
        if not files:
            raise DataError(
                "no images below the class folders",
                where=root,
                hint=f"Understood: {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        files.sort(key=lambda entry: entry[0])
        self._relative = [entry[0] for entry in files]
        self._paths = [entry[1] for entry in files]
        self._preprocessing = preprocessing or Preprocessing.model_validate({})
        self._masks = masks
        first = self._image(self._paths[0])
        super().__init__(
            name=name or root.resolve().name,
            split=split,
            sample_ids=[id_prefix + entry[0] for entry in files],
            labels=torch.tensor([entry[2] for entry in files]),
            class_names=classes,
            input_shape=(first.shape[0], first.shape[1], first.shape[2]),
        )

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        split: str = "test",
        size: int | tuple[int, int] | None = None,
        resize: int | None = None,
        crop: int | None = None,
        grey: bool = False,
        masks: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        name: str | None = None,
    ) -> FolderDataset:
        """Open ``path``, or its subfolder for ``split`` where it has one.

        Args:
            path: a folder of class folders, or of ``train`` and ``test`` (or ``val``) folders
                that hold those.
            size: stretch to this height and width.
            resize, crop: shorter side, then central square.
            grey: one channel instead of three.
            masks: a folder of PNG masks or VOC annotations, or a COCO file.

        Raises:
            UnknownNameError: the folder has splits and this is none of them.
            DataError: as the class.
        """
        if size is not None and resize is not None:
            raise UsageError("size and resize exclude each other")
        root, prefix = path, ""
        candidates = SPLIT_FOLDERS.get(split, (split,))
        present = sorted(
            {n for names in SPLIT_FOLDERS.values() for n in names if (path / n).is_dir()}
        )
        chosen = next((n for n in candidates if (path / n).is_dir()), None)
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
            preprocessing=Preprocessing(
                size=(size, size) if isinstance(size, int) else size,
                resize=resize,
                crop=crop,
                channels=1 if grey else 3,
            ),
            class_names=class_names,
            masks=None if masks is None else open_masks(Path(masks)),
            id_prefix=prefix,
        )

    def _image(self, path: Path) -> Tensor:
        return self._preprocessing.image(_open(path))

    def _read(self, indices: list[int]) -> Tensor:
        batch = torch.empty((len(indices), *self.input_shape), dtype=torch.float32)
        for row, index in enumerate(indices):
            image = self._image(self._paths[index])
            if tuple(image.shape) != self.input_shape:
                raise DataError(
                    f"the image is {_size(image)}, the first one {_size(batch[0])}",
                    where=self._paths[index],
                    hint="Bring all to one size with size=, or resize= and crop=",
                )
            batch[row] = image
        return batch

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        if self._masks is None:
            return None
        result = torch.zeros((len(indices), *self.input_shape[1:]), dtype=torch.bool)
        for row, index in enumerate(indices):
            # The size is in the header; the pixels are not decoded again.
            mask = self._masks.mask(self._relative[index], _image_size(self._paths[index]))
            if mask is not None:
                result[row] = self._preprocessing.mask(mask)
        return result


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
    names = [_normal(name) for name in wanted]
    if sorted(names) != found:
        missing = sorted(set(names) - set(found))
        extra = sorted(set(found) - set(names))
        raise DataError(
            f"the class folders differ from the given names (missing: {_few(missing)}; "
            f"not named: {_few(extra)})",
            where=root,
        )
    return names


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the image cannot be read: {error}", where=path) from error


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"the image cannot be read: {error}", where=path) from error


def _normal(text: str) -> str:
    # macOS stores names decomposed; the same file must keep one id everywhere.
    return unicodedata.normalize("NFC", text)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "none"


def _size(image: Tensor) -> str:
    return "x".join(str(side) for side in reversed(image.shape[-2:]))
