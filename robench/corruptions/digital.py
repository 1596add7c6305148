"""What processing does to images: contrast, warping, few pixels, compression, colour.

Functions are as in :mod:`robench.corruptions.noise`.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from torch import Tensor

from robench import seeding
from robench.corruptions.blur import smooth
from robench.corruptions.images import Array, each, grey_levels, sampled
from robench.corruptions.noise import uniform


def contrast(images: Array, keys: Tensor, kept: float) -> Array:
    """Each channel comes nearer to its mean."""
    mean = images.mean(axis=(2, 3), keepdims=True)
    return np.asarray((images - mean) * kept + mean)


def saturate(images: Array, keys: Tensor, factor: float, added: float) -> Array:
    """More or less saturation, in the hexcone model; hue and value stay, and what has no hue is red."""
    value, least = images.max(axis=1, keepdims=True), images.min(axis=1, keepdims=True)
    span = value - least
    # How far a channel is below the value, of the most: 0 to 1.
    depth = np.where(span > 0, (value - images) / np.where(span > 0, span, 1.0), 1.0)
    depth[:, 0] = np.where(span[:, 0] > 0, depth[:, 0], 0.0)
    saturation = span / np.where(value > 0, value, 1.0)
    return np.asarray(value * (1 - depth * np.clip(saturation * factor + added, 0, 1)))


def elastic_transform(
    images: Array, keys: Tensor, strength: float, sigma: float, corners: float
) -> Array:
    """A random affine map, then a random smooth displacement; linearly interpolated.

    Args:
        images, keys: as in :mod:`robench.corruptions.noise`.
        strength: of the displacement, before it is smoothed by a Gaussian of ``sigma``.
        corners: how far at most the three points that define the affine map move.
            All in sides of the image, the shorter one.
    """
    count, _, height, width = images.shape
    side = min(height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    # Three points (column, row) around the centre, and where they come to lie.
    centre, reach = np.array([height, width]) // 2, side // 3
    before = centre + reach * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    jump = corners * side
    after = before + uniform(seeding.derive(keys, 1), (3, 2), -jump, jump)
    ones = np.ones((count, 3, 1))
    # The map from where a pixel lies to where it comes from.
    back = _solved(np.concatenate((after, ones), axis=2), np.broadcast_to(before, after.shape))
    places = np.stack((columns, rows, np.ones_like(rows)), axis=-1)
    origin = np.einsum("hwk,nkj->jnhw", places, back)
    warped = sampled(images, origin[1], origin[0], repeat_edge=False)
    right, down = (
        strength
        * side
        * smooth(
            uniform(seeding.derive(keys, n), (height, width), -1, 1), sigma * side, "reflect", 3.0
        )
        for n in (2, 3)
    )
    return sampled(warped, rows + down, columns + right, repeat_edge=True)


def _solved(matrices: Array, values: Array) -> Array:
    """Solutions of systems (N, 3, 3) by (N, 3, 2); points on one line are taken apart a little."""
    flat = np.abs(np.linalg.det(matrices)) < 1e-9
    return np.linalg.solve(matrices + 1e-6 * flat[:, None, None] * np.eye(3), values)


def pixelate(images: Array, keys: Tensor, share: float) -> Array:
    """Fewer pixels, each as large as a box of those there were."""
    height, width = images.shape[2:]
    few = (max(1, int(width * share)), max(1, int(height * share)))

    def coarse(picture: Image.Image) -> Image.Image:
        smaller = picture.resize(few, Image.Resampling.BOX)
        return smaller.resize((width, height), Image.Resampling.BOX)

    return _through(images, coarse)


def jpeg_compression(images: Array, keys: Tensor, quality: int) -> Array:
    """JPEG of a quality, by the codec that Pillow has: codecs differ in the last level or two."""

    def compressed(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer)

    return _through(images, compressed)


def _through(images: Array, change: Callable[[Image.Image], Image.Image]) -> Array:
    """What Pillow makes of each image, of all channels together where they are colours."""
    _, channels, height, width = images.shape
    levels = grey_levels(images).astype(np.uint8)
    if channels == 3:
        pictures = [Image.fromarray(pixels) for pixels in levels.transpose(0, 2, 3, 1)]
        changed = each(change, pictures).transpose(0, 3, 1, 2)
    else:
        pictures = [Image.fromarray(pixels) for pixels in levels.reshape(-1, height, width)]
        changed = each(change, pictures).reshape(images.shape)
    return changed / 255.0
