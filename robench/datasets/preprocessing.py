"""How images of any size become samples of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robench.errors import UsageError
from robench.records import PreprocessingSpec, parse

PREPROCESSING_OPTIONS = frozenset({"size", "resize", "crop", "interpolation"})
"""A loader that takes these prepares images; whichever is given replaces a card's."""


class Preprocessing(PreprocessingSpec):
    """Resize, crop and channels, applied to images and (with nearest cells) to their masks."""

    channels: Literal[1, 3] = 3
    """3: RGB, 1: grey."""

    @classmethod
    def of(
        cls,
        *,
        size: int | Sequence[int] | None = None,
        resize: int | None = None,
        crop: int | None = None,
        interpolation: str = "bilinear",
        grey: bool = False,
    ) -> Preprocessing:
        """From a loader's options.

        Args:
            size: stretch to this height and width; one number for both.
            resize: length of the shorter side.
            crop: side of the central square.
            interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
            grey: one channel instead of three.

        Raises:
            UsageError: a value is wrong, or ``size`` and ``resize`` are both given.
        """
        content = {
            "size": (size, size) if isinstance(size, int) else size,
            "resize": resize,
            "crop": crop,
            "interpolation": interpolation,
            "channels": 1 if grey else 3,
        }
        return parse(cls, content, UsageError, where="preprocessing")

    @property
    def spec(self) -> PreprocessingSpec | None:
        """What a model's card says of it; None: images are taken as they are."""
        spec = PreprocessingSpec.model_validate(self.model_dump(exclude={"channels"}))
        return None if spec == PreprocessingSpec() else spec

    def image(self, image: Image.Image) -> Tensor:
        """float32 (C, H, W) in [0, 1]."""
        # A palette or alpha must be resolved before resizing, else indices are interpolated.
        plain = image.convert("RGB" if self.channels == 3 else "L")
        fitted = self._fit(plain, Image.Resampling[self.interpolation.upper()])
        pixels = np.asarray(fitted, dtype=np.float32) / 255
        tensor = torch.from_numpy(pixels)
        return tensor.permute(2, 0, 1).contiguous() if tensor.ndim == 3 else tensor.unsqueeze(0)

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
            left = round((width - self.crop) / 2)
            top = round((height - self.crop) / 2)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        return image
