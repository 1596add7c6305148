"""Where the labelled object is: mask images, Pascal-VOC boxes, COCO boxes.

A source of masks answers for one image at a time, at the image's own size, so that the same
resize and crop apply to both.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from xml.etree import ElementTree

from PIL import Image, ImageDraw

from robench.errors import DataError

__all__ = ["BoxMasks", "MaskSource", "PngMasks", "open_masks", "read_coco", "read_voc"]

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels; right and bottom are outside."""


class MaskSource(Protocol):
    """Gives the object's mask of an image by its path relative to the data set."""

    def mask(self, relative: str, size: tuple[int, int]) -> Image.Image | None:
        """``"L"`` image of ``size`` (width, height), object 255; None: not known."""
        ...


class PngMasks:
    """One mask image for each image, under the same relative path with ``.png``.

    Any value above 0 is the object.

    Args:
        folder: holds the mask images.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def mask(self, relative: str, size: tuple[int, int]) -> Image.Image | None:
        """The mask image, if there is one for this image."""
        path = self._folder / PurePosixPath(relative).with_suffix(".png")
        if not path.is_file():
            return None
        try:
            with Image.open(path) as opened:
                mask = opened.convert("L").point(lambda value: 255 if value else 0)
        except OSError as error:
            raise DataError(f"the mask cannot be read: {error}", where=path) from error
        if mask.size != size:
            raise DataError(
                f"the mask is {mask.size[0]}x{mask.size[1]}, its image {size[0]}x{size[1]}",
                where=path,
                hint="A mask has the size of its unprocessed image",
            )
        return mask


class BoxMasks:
    """Boxes by image, painted as filled rectangles.

    Args:
        boxes: relative path or bare file name of an image, without suffix → its boxes.
    """

    def __init__(self, boxes: dict[str, list[Box]]) -> None:
        self._boxes = boxes

    def mask(self, relative: str, size: tuple[int, int]) -> Image.Image | None:
        """The image's boxes painted, if it has any."""
        stem = PurePosixPath(relative).with_suffix("")
        boxes = self._boxes.get(str(stem)) or self._boxes.get(stem.name)
        if not boxes:
            return None
        mask = Image.new("L", size, 0)
        draw = ImageDraw.Draw(mask)
        for left, top, right, bottom in boxes:
            # PIL's rectangles include their last pixel.
            if right > left and bottom > top:
                draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=255)
        return mask


def read_voc(folder: Path) -> BoxMasks:
    """Pascal-VOC annotations: one ``.xml`` an image, same relative path or same file name.

    Raises:
        DataError: a file is no VOC annotation.
    """
    boxes: dict[str, list[Box]] = {}
    for path in sorted(folder.rglob("*.xml")):
        key = path.relative_to(folder).with_suffix("").as_posix()
        if path.read_bytes().find(b"<!DOCTYPE") >= 0:
            # Entities could expand without bound; annotations have no use for them.
            raise DataError("the annotation declares a document type", where=path)
        try:
            found = [_voc_box(node) for node in ElementTree.parse(path).iter("bndbox")]
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise DataError(f"no Pascal-VOC annotation: {error}", where=path) from error
        boxes[key] = found
    return BoxMasks(boxes)


def read_coco(path: Path) -> BoxMasks:
    """A COCO annotation file: ``images`` with ``file_name``, ``annotations`` with ``bbox``.

    Raises:
        DataError: the file is no COCO annotation.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {
            image["id"]: str(PurePosixPath(image["file_name"]).with_suffix(""))
            for image in content["images"]
        }
        boxes: dict[str, list[Box]] = {}
        for annotation in content["annotations"]:
            left, top, width, height = (float(v) for v in annotation["bbox"])
            box = (left, top, left + width, top + height)
            boxes.setdefault(names[annotation["image_id"]], []).append(box)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"no COCO annotation file: {error!r}", where=path) from error
    return BoxMasks(boxes)


def open_masks(path: Path) -> MaskSource:
    """A COCO ``.json``, or a folder of VOC ``.xml`` or of mask images.

    Raises:
        DataError: none of these is there.
    """
    if path.is_file() and path.suffix == ".json":
        return read_coco(path)
    if path.is_dir():
        if next(path.rglob("*.xml"), None) is not None:
            return read_voc(path)
        if next(path.rglob("*.png"), None) is not None:
            return PngMasks(path)
    raise DataError(
        "no masks are there",
        where=path,
        hint="Give a folder of .png masks, a folder of Pascal-VOC .xml files, or a COCO .json",
    )


def _voc_box(node: Any) -> Box:
    left, top, right, bottom = (
        float(node.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax")
    )
    # VOC counts pixels from 1 and includes the last one.
    return left - 1, top - 1, right, bottom
