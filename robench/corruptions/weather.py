"""Weather: snow, frost, fog and bright light.

Functions are as in :mod:`robench.corruptions.noise`.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from robench import seeding
from robench.corruptions.images import (
    Array,
    brightness_of,
    clouds,
    cut_to_levels,
    moved,
    tinted,
    zoomed,
)
from robench.corruptions.noise import normal, uniform

_FROST = (0.565, 0.648, 0.693)
_FROST_BETWEEN, _FROST_WITHIN, _FROST_DECAY = (0.198, 0.136, 0.131), 0.095, 1.25
"""Of the photographs of frost that the published sets were made with: the mean colour, how far the
mean of a clipping goes from it, and pixels from that; standard deviations"""


def _clouds(keys: Tensor, shape: tuple[int, ...], decay: float) -> Array:
    height, width = shape[-2:]
    size = 1 << (max(height, width, 2) - 1).bit_length()

    def draw(number: int, grid: tuple[int, ...]) -> Array:
        return uniform(seeding.derive(keys, number), grid, -1, 1)

    return clouds(draw, len(keys), size, decay)[:, :height, :width]


def snow(
    images: Array,
    keys: Tensor,
    amount: float,
    scale: float,
    flake: float,
    least: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Array:
    """Flakes that fall on a whitened image.

    Args:
        images, keys: as above.
        amount, scale: mean and standard deviation of the noise that flakes are made of.
        flake: by how much it is enlarged.
        least: what of it is no flake.
        radius, sigma: of the motion, within 45° of straight down.
        kept: how much of the image is not whitened.
    """
    shape = images.shape[2:]
    layer = zoomed(amount + scale * normal(seeding.derive(keys, 1), shape), flake)
    layer = cut_to_levels(np.where(layer < least, 0.0, layer))[:, None]
    angles = uniform(seeding.derive(keys, 2), low=-135, high=-45)
    falling = np.rint(moved(layer, radius, sigma, angles) * 255) / 255
    white = np.maximum(images, brightness_of(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * white + falling + falling[..., ::-1, ::-1]


def frost(images: Array, keys: Tensor, kept: float, cover: float) -> Array:
    """Ice crystals on the lens. The texture is drawn: the published sets take it from photographs,
    whose colour and variation this one has."""
    field = _clouds(seeding.derive(keys, 1), images.shape, _FROST_DECAY)
    field = field - field.mean(axis=(1, 2), keepdims=True)
    field /= np.maximum(field.std(axis=(1, 2), keepdims=True), 1e-6)
    # Uniform, of that standard deviation: the photographs are a handful.
    tone = uniform(seeding.derive(keys, 2), (1, 1), -(3**0.5), 3**0.5)
    flat, channels = np.ones_like(field), images.shape[1]
    texture = tinted(flat, _FROST, channels) + tinted(flat * tone, _FROST_BETWEEN, channels)
    return np.asarray(
        kept * images + cover * np.clip(texture + _FROST_WITHIN * field[:, None], 0, 1)
    )


def fog(images: Array, keys: Tensor, density: float, decay: float) -> Array:
    """Clouds before the image, which as a whole stays as bright as its brightest pixel."""
    brightest = images.max(axis=(1, 2, 3), keepdims=True)
    foggy = images + density * _clouds(keys, images.shape, decay)[:, None]
    return np.asarray(foggy * brightest / (brightest + density))


def brightness(images: Array, keys: Tensor, added: float) -> Array:
    """More value, in the hexcone model; hue and saturation stay."""
    value = images.max(axis=1, keepdims=True)
    brighter = np.minimum(value + added, 1.0)
    return np.asarray(
        np.where(value > 0, images * brighter / np.where(value > 0, value, 1.0), brighter)
    )
