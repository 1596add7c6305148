"""Where the labelled object is: mask images, Pascal-VOC boxes, COCO boxes.

A source of masks answers for one image at a time, at the image's own size, so that the same
resize and crop apply to both.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from robench.datasets.pixels import eight_bits, is_deep
from robench.errors import DataError, one_line
from robench.files import check_regular, read_bytes

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels; right and bottom are outside."""

Size = tuple[int, int]
"""width, height in pixels."""


class MaskSource(Protocol):
    """Gives the object's mask of an image by its path relative to the data set."""

    def knows(self, relative: str) -> bool:
        """Whether there is a mask for the image."""
        ...

    def mask(self, relative: str, size: Size) -> Image.Image | None:
        """``"L"`` image of ``size`` (width, height), object 255; None: not known."""
        ...


class PngMasks:
    """One mask image for each image, under the same relative path with ``.png``.

    Any value above 0 in any channel, alpha aside, is the object.

    Args:
        folder: holds the mask images.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def knows(self, relative: str) -> bool:
        """Whether there is a mask image."""
        return os.path.isfile(self._path(relative))

    def _path(self, relative: str) -> Path:
        return self._folder / PurePosixPath(relative).with_suffix(".png")

    def mask(self, relative: str, size: Size) -> Image.Image | None:
        """The mask image, if there is one for this image."""
        path = self._path(relative)
        if not os.path.isfile(path):
            return None
        try:
            with Image.open(path) as opened:
                values = np.asarray(opened if is_deep(opened) else eight_bits(opened, 3)) != 0
        except Exception as error:  # Decoders of damaged images raise almost anything.
            raise DataError(f"the mask cannot be read: {one_line(error)}", where=path) from error
        mask = Image.fromarray(np.uint8(255) * (values.any(-1) if values.ndim == 3 else values))
        if mask.size != size:
            raise DataError(
                f"the mask is {mask.size[0]}x{mask.size[1]}, its image {size[0]}x{size[1]}",
                where=path,
                hint="A mask has the size of its unprocessed image",
            )
        return mask


class BoxMasks:
    """Boxes by image, painted as filled rectangles.

    What of a box lies beyond the image's border is left out.

    Args:
        boxes: relative path or bare file name of an image, without suffix → its boxes.
        sizes: likewise → (width, height) of the image that was annotated, where that is known.
    """

    def __init__(self, boxes: dict[str, list[Box]], sizes: dict[str, Size] | None = None) -> None:
        self._boxes = boxes
        self._sizes = sizes or {}

    def knows(self, relative: str) -> bool:
        """Whether the image has a box."""
        return bool(self._boxes.get(self._key(relative)))

    def _key(self, relative: str) -> str:
        stem = PurePosixPath(relative).with_suffix("")
        return str(stem) if self._boxes.get(str(stem)) else stem.name

    def mask(self, relative: str, size: Size) -> Image.Image | None:
        """The image's boxes painted, if it has any.

        Raises:
            DataError: the annotated image had another size, or a box lies outside the image.
        """
        key = self._key(relative)
        boxes = self._boxes.get(key)
        if not boxes:
            return None
        annotated = self._sizes.get(key, size)
        if annotated != size:
            raise DataError(
                f"its boxes are for an image of {annotated[0]}x{annotated[1]}, "
                f"it has {size[0]}x{size[1]}",
                where=relative,
                hint="Boxes count the pixels of the unprocessed image",
            )
        mask = Image.new("L", size, 0)
        draw = ImageDraw.Draw(mask)
        for left, top, right, bottom in boxes:
            if right <= left or bottom <= top:
                continue
            if right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]:
                raise DataError(
                    f"the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) lies outside "
                    f"the image of {size[0]}x{size[1]}",
                    where=relative,
                    hint="Boxes count the pixels of the unprocessed image",
                )
            # PIL's rectangles include their last pixel.
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=255)
        return mask


def read_voc(folder: Path) -> BoxMasks:
    """Pascal-VOC annotations: one ``.xml`` an image, same relative path or same file name.

    Raises:
        DataError: a file is no VOC annotation.
    """
    boxes: dict[str, list[Box]] = {}
    sizes: dict[str, Size] = {}
    for path in sorted(folder.rglob("*.xml")):
        key = path.relative_to(folder).with_suffix("").as_posix()
        try:
            content = read_bytes(path)
        except OSError as error:
            raise DataError(f"cannot be read: {one_line(error)}", where=path) from error
        if b"<!DOCTYPE" in content:
            # Entities could expand without bound; annotations have no use for them.
            raise DataError("the annotation declares a document type", where=path)
        try:
            tree = ElementTree.fromstring(content)
            found: list[Box] = []
            for node in tree.iter("bndbox"):
                numbers = (node.findtext(tag, "") for tag in ("xmin", "ymin", "xmax", "ymax"))
                left, top, right, bottom = map(float, numbers)
                # VOC counts pixels from 1 and includes the last one.
                found.append((left - 1, top - 1, right, bottom))
            size = _size(tree.findtext("size/width"), tree.findtext("size/height"))
        except Exception as error:  # A damaged file makes the parser raise almost anything.
            raise DataError(f"no Pascal-VOC annotation: {one_line(error)}", where=path) from error
        boxes[key] = found
        if size is not None:
            sizes[key] = size
    return BoxMasks(boxes, sizes)


def read_coco(path: Path) -> BoxMasks:
    """A COCO annotation file: ``images`` with ``file_name``, ``annotations`` with ``bbox``.

    Raises:
        DataError: the file is no COCO annotation.
    """
    try:
        check_regular(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        names: dict[Any, str] = {}
        sizes: dict[str, Size] = {}
        for image in content["images"]:
            name = str(PurePosixPath(image["file_name"]).with_suffix(""))
            names[image["id"]] = name
            size = _size(image.get("width"), image.get("height"))
            if size is not None:
                sizes[name] = size
        boxes: dict[str, list[Box]] = {}
        for annotation in content["annotations"]:
            left, top, width, height = (float(v) for v in annotation["bbox"])
            box = (left, top, left + width, top + height)
            boxes.setdefault(names[annotation["image_id"]], []).append(box)
    except Exception as error:  # A damaged file makes the parser raise almost anything.
        raise DataError(f"no COCO annotation file: {error!r}", where=path) from error
    return BoxMasks(boxes, sizes)


def open_masks(path: Path) -> MaskSource:
    """A COCO ``.json``, or a folder of VOC ``.xml`` or of mask images.

    Raises:
        DataError: none of these is there.
    """
    if os.path.isfile(path) and path.suffix == ".json":
        return read_coco(path)
    if os.path.isdir(path):
        if next(path.rglob("*.xml"), None) is not None:
            return read_voc(path)
        if next(path.rglob("*.png"), None) is not None:
            return PngMasks(path)
    raise DataError(
        "no masks are there",
        where=path,
        hint="Give a folder of .png masks, a folder of Pascal-VOC .xml files, or a COCO .json",
    )


def _size(width: Any, height: Any) -> Size | None:
    """The annotated image's size; tools that do not know it write nothing, or 0."""
    size = int(width or 0), int(height or 0)
    return size if min(size) > 0 else None
