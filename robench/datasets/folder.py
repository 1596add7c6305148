"""A folder of images, one subfolder a class, read as it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robench.datasets.image_files import ImageFiles, composed
from robench.datasets.object_masks import MaskSource, open_masks
from robench.datasets.preprocessing import Preprocessing
from robench.errors import DataError, UnknownNameError

__all__ = ["IMAGE_SUFFIXES", "FolderDataset"]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test", "val")}
"""Subfolders that may hold a split, best first. Some sets publish only train and val."""


class FolderDataset(ImageFiles):
    """Images below ``root/<class>/``, sorted by code point.

    Files and folders that start with a dot are skipped.

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
        folders = {composed(p.name): p for p in root.iterdir() if p.is_dir() and _visible(p)}
        classes = _classes(root, sorted(folders), class_names)
        files: list[tuple[str, int]] = []
        for label, class_name in enumerate(classes):
            folder = folders[class_name]
            files += [
                (path.relative_to(root).as_posix(), label)
                for path in folder.rglob("*")
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
            preparation: ``size``, ``resize``, ``crop``, ``interpolation``, ``grey``
                (:meth:`Preprocessing.of`).

        Raises:
            UnknownNameError: the folder has splits and this is none of them.
            UsageError: a wrong option.
            DataError: as the class.
        """
        preprocessing = Preprocessing.of(**preparation)
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
        missing = sorted(set(names) - set(found))
        extra = sorted(set(found) - set(names))
        raise DataError(
            f"the class folders differ from the given names (missing: {_few(missing)}; "
            f"not named: {_few(extra)})",
            where=root,
        )
    return names


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "none"
