"""Stored values → pixels, float32 in [0, 1]: one rule for files, arrays, torch's and the Hub's data.

Black is 0. White, which becomes 1.0, is the largest value of an unsigned type of 8 or 16 bits, and
True; floating point has to be in [0, 1] already. Wider and signed integers do not say what white
is, so they are refused. ``white`` names the value where this rule does not know it, or is wrong:
4095 for 12 bits kept in 16, 255 for floats that count to 255. Nothing is ever clipped. A whole set
that uses the bottom of its range alone is in doubt (:func:`check_brightness`).
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from robench.errors import DataError, UsageError

_WHITE = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535}

_SAY_WHITE = (
    "Say which value is white, as with white=65535 (--dataset-option white=65535; in Python "
    "robench.datasets.from_torch(data, white=65535))"
)

_ORIENTATION, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT, _INKS = 274, 258, 262, 339, 332
"""Tags of EXIF and TIFF; orientations from 5 to 8 turn by a quarter."""

_DARK = 15
"""A set is in doubt if no value comes above one part in so many of white."""


def white_of_type(dtype: torch.dtype) -> float:
    """The value that is white in numbers of this type; floating point is in [0, 1]."""
    return float(_WHITE.get(dtype, 1))


def unit_range(pixels: Tensor, where: object, white: float | None = None) -> Tensor:
    """float32 in [0, 1], of the same shape.

    Raises:
        DataError: integers of a type that does not say what white is; values that are not finite,
            negative or above white.
        UsageError: ``white`` is no positive number.
    """
    if white is not None and not (isinstance(white, Real) and 0 < white < math.inf):
        raise UsageError(f"white is {white!r:.50}, no positive number", where=where)
    known = _WHITE.get(pixels.dtype)
    if None not in (white, known):
        _check_white(float(white or 0), float(known or 0), str(pixels.dtype), where)
    full = known if white is None else white
    if pixels.is_complex() or (full is None and not pixels.is_floating_point()):
        raise DataError(
            f"inputs are {pixels.dtype}",
            where=where,
            hint=f"Give uint8, uint16 or floats in [0, 1]. {_SAY_WHITE}",
        )
    wide = not pixels.is_floating_point() and known is None
    floats = pixels.to(torch.float64 if wide else torch.float32)
    if full is not None:
        floats = (floats / full).to(torch.float32)
    if white is not None or known is None:
        _check_range(floats, where, full)
    return floats


def _check_white(white: float, largest: float, what: str, where: object) -> None:
    if white > largest:
        raise DataError(
            f"white={white:g} is beyond the largest value of {what}, {largest:g}", where=where
        )


DARK = "no value is above a fifteenth of white; white=VALUE says what is"
"""Of floats that may have been scaled twice"""


def is_dark(highest: float) -> bool:
    """Whether a highest value, where white is 1, is so low that white may be another."""
    return highest * _DARK <= 1 + 1e-6


def check_brightness(highest: float, where: object, white: float | None = None) -> None:
    """Refuse a whole set that uses the bottom of its range alone.

    Such sets hold 0 and 1, digits' 0 to 16, 12 bits of 16, or were divided by 255 twice, far more often
    than dark images. Black alone is black.

    Args:
        highest: the highest value, where white is 1.
        where: for the error.
        white: the stored value that was taken for white; None: images of several kinds.

    Raises:
        DataError: the range is in doubt.
    """
    if highest <= 0 or not is_dark(highest):
        return
    if white is None:
        what = f"no image is brighter than {highest:.4g}, where 1 is white"
        say = f"white={255 * highest:.0f} of 8 bits, or white=255 if they are so dark"
    else:
        what = f"of the inputs none is above {white * highest:.6g}, so white may not be {white:g}"
        say = f"white={white * highest:.6g}, or white={white:g} if they are so dark"
    raise DataError(
        what,
        where=where,
        hint=f"Say which stored value is white: {say} (--dataset-option, or "
        "robench.datasets.from_torch(data, white=…))",
    )


def check_unit_range(inputs: Tensor, where: object) -> None:
    """Refuse floats that are not finite and in [0, 1].

    Raises:
        DataError: they are not.
    """
    _check_range(inputs, where, None)


def _check_range(inputs: Tensor, where: object, full: float | None) -> None:
    if inputs.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(inputs.detach()))
    if low >= 0 and high <= 1:  # false of NaN too, which aminmax passes on
        return
    if full is not None:
        raise DataError(
            f"inputs range over [{low * full:.6g}, {high * full:.6g}], not [0, 1] after division "
            f"by {full:g}",
            where=where,
            hint=_SAY_WHITE,
        )
    counts = 1 < high <= 255 and low >= 0
    raise DataError(
        f"inputs range over [{low:.9g}, {high:.9g}], not [0, 1]",
        where=where,
        hint=("Divide by 255, or say white=255" if counts else "Bring the inputs to [0, 1] first")
        + "; a normalisation belongs to the model's card",
    )


def channels_first(pixels: Tensor, *, last: bool = False) -> Tensor:
    """(…, C, H, W) of that or (…, H, W, C), by which axis can be channels: 1 or 3 of them.

    Args:
        pixels: with three axes or more.
        last: channels come last where both axes can be, or neither.
    """
    front, back = (pixels.shape[axis] in (1, 3) for axis in (-3, -1))
    return pixels.movedim(-1, -3) if (last if front == back else back) else pixels


def plain_tensor(values: Tensor, what: str, where: object) -> Tensor:
    """A tensor of any kind → one on the CPU whose elements lie there as they are, without gradients.

    Sparse ones are filled up, quantised ones become the numbers that they stand for.

    Raises:
        DataError: it holds no values (``meta``), rows of unequal shapes (nested), or numbers that
            torch cannot convert, as those of 4 bits.
    """
    try:
        if values.is_nested:
            raise ValueError("a nested tensor")
        plain = values.detach()
        plain = plain.dequantize() if plain.is_quantized else plain
        plain = plain.to_dense() if plain.layout != torch.strided else plain
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous()
        plain.flatten()[:1].to(torch.complex64 if plain.is_complex() else torch.float32)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{what!r} is a tensor that cannot be read ({values.dtype} on {values.device}, "
            f"{values.layout}{', nested' if values.is_nested else ''})",
            where=where,
            hint="Give an ordinary tensor with values",
        ) from error
    return plain


def array_tensor(values: Any, what: str, where: object) -> Tensor:
    """Numbers, in a tensor, an array or lists, of any byte order → the tensor.

    Raises:
        DataError: these are no numbers, or lists of unequal lengths; some are masked.
    """
    if isinstance(values, Tensor):
        return plain_tensor(values, what, where)
    listed = list(values) if isinstance(values, (list, tuple)) else []
    if any(isinstance(value, Image.Image) for value in listed):
        raise DataError(
            f"{what!r} are images, not arrays", where=where, hint="Give a list of (image, label)"
        )
    if listed and all(isinstance(value, (Tensor, np.ndarray)) for value in listed):
        parts = [array_tensor(value, what, where) for value in listed]
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            raise DataError(f"{what!r} are of several shapes or types", where=where)
        return torch.stack(parts)
    if np.ma.is_masked(values):
        raise DataError(
            f"{what!r} has masked values", where=where, hint="Give an array without a mask"
        )
    try:
        array = np.asarray(values)
        array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        return torch.from_numpy(np.ascontiguousarray(array))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what!r} is no array of numbers: {error}", where=where) from error


def grey_mode(image: Image.Image) -> bool:
    """Whether the image has one channel, alpha aside."""
    return image.mode in ("1", "L", "LA", "La") or is_deep(image)


def white_of(image: Image.Image) -> float | None:
    """The value that is white in an image as it was opened; None: it has 8 bits.

    Raises:
        DataError: the format does not say.
    """
    if not is_deep(image):
        return None
    if image.mode == "F":
        return 1.0
    if image.mode.startswith("I;16"):
        # TIFF keeps 12 bits in 16, and says so.
        return float(2 ** int(getattr(image, "tag_v2", {}).get(_BITS, (16,))[0]) - 1)
    if image.format in ("PNG", "PPM"):  # neither has more than 16 bits
        return 65535.0
    tags = getattr(image, "tag_v2", {})
    bits = int(np.max(tags.get(_BITS, 32)))
    sign = " with a sign" if np.max(tags.get(_SAMPLE_FORMAT, 1)) == 2 else ""
    raise DataError(
        f"{bits}-bit integers{sign} in {image.format or 'an image'} do not say what white is",
        hint=_SAY_WHITE,
    )


def refuse_misread(image: Image.Image) -> None:
    """Refuse an opened image that Pillow reads as what it is not.

    Raises:
        DataError: integers of 8 bits with a sign; inks other than CMYK; values above the maximum that
            a PGM or PPM names.
    """
    _refuse_beyond_maximum(image)
    tags = getattr(image, "tag_v2", {})
    formats = set(np.atleast_1d(tags.get(_SAMPLE_FORMAT, 1)).tolist())
    if image.mode not in ("I", "F") and not formats <= {1, 4}:  # unsigned, undefined
        raise DataError(
            "the TIFF's integers have a sign, which its reader passes over",
            hint="Save it without sign, or as floats in [0, 1]",
        )
    if image.mode == "CMYK" and tags.get(_INKS, 1) != 1:
        raise DataError("the TIFF's inks are not CMYK", hint="Convert it to RGB")


def _refuse_beyond_maximum(image: Image.Image) -> None:
    """Of an image that is not decoded yet: Pillow cuts such values."""
    for codec, _, offset, arguments in getattr(image, "tile", ()):
        if codec != "ppm":
            continue
        most = int(arguments[-1])
        numbers = np.dtype(np.uint8 if most < 256 else ">u2")
        stream: Any = getattr(image, "fp", None)
        stream.seek(offset)
        size = image.width * image.height * len(image.getbands()) * numbers.itemsize
        content = stream.read(size)
        values = np.frombuffer(
            content[: len(content) // numbers.itemsize * numbers.itemsize], numbers
        )
        if values.size and (highest := int(values.max())) > most:
            raise DataError(
                f"a value is {highest}, and the file says that none is above {most}",
                hint="Correct the maximum in its header, or the image",
            )


def is_inverted(image: Image.Image) -> bool:
    """Whether white is stored as 0, as in some TIFFs; of 8 bits Pillow inverts them itself."""
    return is_deep(image) and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """In mode L or RGB: palettes resolved, alpha dropped, others converted as Pillow does.

    Raises:
        DataError: Pillow does not know how; the mode is LAB, whose colours depend on a white; a pixel is
            none of the palette's colours.
    """
    if image.mode in ("P", "PA"):
        _check_palette(image)
    if (image.mode in ("P", "PA") and "transparency" in image.info) or image.mode == "RGBa":
        image = image.convert("RGBA")  # otherwise Pillow warns, or refuses
    elif image.mode == "La":
        image = image.convert("LA")
    try:
        if image.mode == "LAB":
            raise ValueError("needs a profile")
        return image.convert("L" if channels == 1 else "RGB")
    except ValueError as error:
        raise DataError(f"the image has mode {image.mode}", hint="Convert it to RGB") from error


def _check_palette(image: Image.Image) -> None:
    image.load()
    colours = 0 if image.palette is None else len(image.palette.palette) // len(image.palette.mode)
    highest = int(np.asarray(image.getchannel("P") if image.mode == "PA" else image).max())
    if 0 < colours <= highest:
        raise DataError(f"a pixel has colour {highest} of a palette of {colours}")


def unit_bands(image: Image.Image, white: float, channels: int) -> list[Image.Image]:
    """An image of any depth as one or ``channels`` images of mode F, in which 1.0 is white.

    Raises:
        DataError: values are negative, above white, or not finite; white is beyond what the image can
            hold: of colour, Pillow reads 8 bits.
    """
    if image.mode == "1" and white == 1:
        white = 255.0  # as Pillow has it
    plain = image if is_deep(image) else eight_bits(image, channels)
    if image.mode not in ("I", "F"):
        bits = 16 if is_deep(image) else 8
        _check_white(white, 2.0**bits - 1, f"the {bits} bits that are read of the image", None)
    values = (torch.from_numpy(np.array(band, dtype=np.float64)) for band in plain.split())
    return [Image.fromarray(unit_range(band, None, white).numpy()) for band in values]


def is_deep(image: Image.Image) -> bool:
    """Whether its channel has more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def upright(image: Image.Image) -> Image.Image:
    """The image as EXIF says that it is shown."""
    return ImageOps.exif_transpose(image) if _orientation(image) > 1 else image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the upright image, of whose file only the header was read."""
    width, height = image.size
    # Pillow turns a TIFF, and says its turned size, itself.
    turned = image.format != "TIFF" and _orientation(image) >= 5
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # A damaged EXIF block raises almost anything, and turns nothing.
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
