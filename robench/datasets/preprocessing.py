"""How images of any size become samples of one size."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

__all__ = ["Preprocessing"]


class Preprocessing(BaseModel):
    """Resize, crop and channels, applied to images and (with nearest cells) to their masks.

    ``resize=256, crop=224`` is the field's preprocessing for ImageNet; ``size=(32, 32)``
    stretches to exactly that size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: int | None = Field(None, ge=1)
    """Length of the shorter side, keeping the aspect ratio."""
    crop: int | None = Field(None, ge=1)
    """Side of the central square that is kept; zero-padded where the image is smaller."""
    size: tuple[int, int] | None = None
    """Height and width to stretch to, instead of ``resize``."""
    channels: Literal[1, 3] = 3
    """3: RGB, 1: grey."""

    def image(self, image: Image.Image) -> Tensor:
        """float32 (C, H, W) in [0, 1]."""
        # A palette or alpha must be resolved before resizing, else indices are interpolated.
        plain = image.convert("RGB" if self.channels == 3 else "L")
        pixels = np.asarray(self._fit(plain, Image.Resampling.BILINEAR), dtype=np.float32) / 255
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
