"""How images of any size become samples of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from robench.datasets.pixels import (
    array_tensor,
    channels_first,
    eight_bits,
    grey_mode,
    is_inverted,
    refuse_misread,
    unit_bands,
    unit_range,
    upright,
    white_of,
)
from robench.errors import DataError, UsageError, one_line
from robench.records import PreprocessingSpec, parse
from robench.records.base import Real

PREPROCESSING_OPTIONS = frozenset({"size", "resize", "crop", "interpolation"})
"""A loader that takes these prepares images; whichever is given replaces a card's."""

_LONGEST = 16_384
"""Side of an image; a square one of that size takes 3 GiB."""


class Preprocessing(PreprocessingSpec):
    """Resize, crop and channels, applied to images and (with nearest cells) to their masks."""

    channels: Literal[1, 3] = 3
    """3: RGB, 1: grey."""
    white: Real | None = Field(None, gt=0)
    """The stored value that becomes 1.0; None: :mod:`robench.datasets.pixels` says it."""
    upright: bool = True
    """Turn images as their EXIF orientation says; False: as they are stored."""
    pad: bool = False
    """Fill up with black what is smaller than ``crop``; False: refuse it."""

    @classmethod
    def of(
        cls,
        *,
        size: int | Sequence[int] | None = None,
        resize: int | None = None,
        crop: int | None = None,
        interpolation: str = "bilinear",
        grey: bool = False,
        white: float | None = None,
        upright: bool = True,
        pad: bool = False,
    ) -> Preprocessing:
        """From a loader's options.

        Args:
            size: stretch to this height and width; one number for both.
            resize: length of the shorter side.
            crop: side of the central square.
            interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
            grey: one channel instead of three.
            white: the stored value that becomes 1.0, where files do not say it.
            upright: turn images as their EXIF orientation says.
            pad: fill up with black what is smaller than ``crop``.

        Raises:
            UsageError: a value is wrong, or ``size`` and ``resize`` are both given.
        """
        sides = {"size": size, "resize": resize, "crop": crop}
        for name, side in sides.items():
            lengths = side if isinstance(side, Sequence) else [side]
            if any(isinstance(length, int) and length > _LONGEST for length in lengths):
                raise UsageError(f"{name} is {side!r:.50}, more than {_LONGEST} pixels")
        content = {
            "size": (size, size) if isinstance(size, int) else size,
            "resize": resize,
            "crop": crop,
            "interpolation": interpolation,
            "channels": 1 if grey else 3,
            "white": white,
            "upright": upright,
            "pad": pad,
        }
        return parse(cls, content, UsageError, where="preprocessing")

    @property
    def spec(self) -> PreprocessingSpec | None:
        """What a model's card says of it; None: images are taken as they are."""
        spec = PreprocessingSpec.model_validate(
            self.model_dump(include=set(PreprocessingSpec.model_fields))
        )
        return None if spec == PreprocessingSpec() else spec

    def image(self, image: Image.Image) -> Tensor:
        """float32 (C, H, W) in [0, 1].

        Raises:
            DataError: what its values mean is not known, or they are out of range; the image is smaller
                than the crop.
        """
        refuse_misread(image)
        # The opened image knows these; what is made of it does not.
        white, inverted = self.white or white_of(image), is_inverted(image)
        if self.upright:
            image = upright(image)
        resampling = Image.Resampling[self.interpolation.upper()]
        if white is None:
            # A palette or alpha must be resolved before resizing, else indices are interpolated.
            fitted = self._fit(eight_bits(image, self.channels), resampling)
            pixels = np.asarray(fitted, dtype=np.float32) / 255
            tensor = torch.from_numpy(pixels)
            return tensor.permute(2, 0, 1).contiguous() if tensor.ndim == 3 else tensor.unsqueeze(0)
        bands = [self._fit(b, resampling) for b in unit_bands(image, white, self.channels)]
        # What resampling overshoots is cut, as Pillow does with 8 bits.
        stacked = torch.stack([torch.from_numpy(np.array(band)) for band in bands]).clamp(0, 1)
        return (1 - stacked if inverted else stacked).expand(self.channels, -1, -1).contiguous()

    def mask(self, mask: Image.Image) -> Tensor:
        """bool (H, W) of an ``"L"`` image in which the object is not 0."""
        return torch.from_numpy(np.asarray(self._fit(mask, Image.Resampling.NEAREST)) != 0)

    def _fit(self, image: Image.Image, resampling: Image.Resampling) -> Image.Image:
        if self.size is not None:
            height, width = self.size
            if image.size != (width, height):
                image = image.resize((width, height), resampling)
        elif self.resize is not None:
            width, height = image.size
            short = min(width, height)
            if short != self.resize:
                # The longer side is cut to an integer, as torchvision's Resize does.
                wide = self.resize if width <= height else int(self.resize * width / height)
                high = self.resize if height <= width else int(self.resize * height / width)
                image = image.resize((wide, high), resampling)
        if self.crop is not None:
            width, height = image.size
            if self.crop > min(width, height) and not self.pad:
                raise DataError(
                    f"crop={self.crop} is larger than the image, {width} x {height}",
                    hint="Add resize=…, or pad=true, which fills it up with black",
                )
            left = round((width - self.crop) / 2)
            top = round((height - self.crop) / 2)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image


def to_pixels(image: Any, *, where: object, white: float | None = None) -> Tensor:
    """A tensor (C, H, W) or (H, W), an array, or a PIL image → float32 (C, H, W) in [0, 1].

    Arrays have their channels last, tensors first, unless only the other reading gives 1 or 3.

    Raises:
        DataError: it is no image, or as :func:`robench.datasets.pixels.unit_range`.
    """
    if isinstance(image, Image.Image):
        preparation = Preprocessing(channels=1 if grey_mode(image) else 3, white=white)
        try:
            return preparation.image(image)
        except DataError as error:
            raise DataError(error.what, where=where, hint=error.hint) from error
        except Exception as error:  # Decoders of damaged images raise almost anything.
            raise DataError(f"cannot be read: {one_line(error)}", where=where) from error
    if isinstance(image, (str, bytes, Mapping)) or not hasattr(image, "__len__"):
        raise DataError(f"{type(image).__name__} is no image", where=where)
    pixels = array_tensor(image, type(image).__name__, where)
    if pixels.ndim == 2:
        pixels = pixels.unsqueeze(0)
    elif pixels.ndim == 3:
        pixels = channels_first(pixels, last=not isinstance(image, Tensor))
    else:
        raise DataError(
            f"an image of shape {tuple(pixels.shape)}", where=where, hint="Give (C, H, W)"
        )
    return unit_range(pixels, where, white)
