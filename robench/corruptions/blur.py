"""Blur: of lenses, of frosted glass, of movement.

Functions are as in :mod:`robench.corruptions.noise`. Widths are in pixels, at whatever size.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.ndimage import correlate, gaussian_filter
from torch import Tensor

from robench import seeding
from robench.corruptions.images import Array, cut_to_levels, moved, zoomed
from robench.corruptions.noise import uniform

Edge = Literal["nearest", "reflect"]


def smooth(layers: Array, sigma: float, mode: Edge = "nearest", truncate: float = 4.0) -> Array:
    """Layers (…, H, W) under a Gaussian of standard deviation ``sigma``, cut off at ``truncate`` of it."""
    axes = (0.0,) * (layers.ndim - 2) + (sigma, sigma)
    return np.asarray(gaussian_filter(layers, axes, mode=mode, truncate=truncate))


def gaussian_blur(images: Array, keys: Tensor, sigma: float) -> Array:
    """A Gaussian."""
    return smooth(images, sigma)


def disk(radius: float, alias: float) -> Array:
    """The picture of a point through a lens out of focus: a disk, smoothed by ``alias``; sum 1."""
    reach = 8 if radius <= 8 else int(radius)
    places = np.arange(-reach, reach + 1)
    inside = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    taps = np.arange(-1, 2) if radius <= 8 else np.arange(-2, 3)
    edge = np.exp(-(taps**2) / (2 * alias**2))
    kernel = edge[:, None] * edge / edge.sum() ** 2
    return np.asarray(correlate(inside / inside.sum(), kernel, mode="mirror"))


def defocus_blur(images: Array, keys: Tensor, radius: float, alias: float) -> Array:
    """A lens out of focus."""
    return np.asarray(correlate(images, disk(radius, alias)[None, None], mode="mirror"))


def glass_blur(images: Array, keys: Tensor, sigma: float, reach: int, rounds: int) -> Array:
    """Frosted glass: between two Gaussians, pixels take the place of neighbours.

    From the lower right, each pixel becomes one that is up to ``reach`` away, drawn anew in each of so
    many ``rounds``. In the published sets as well the neighbour stays what it was: it is no exchange.
    """
    blurred = cut_to_levels(smooth(images, sigma)).transpose(0, 2, 3, 1).copy()
    count, height, width, _ = blurred.shape
    which = np.arange(count)
    steps = (len(range(height - reach, reach, -1)), len(range(width - reach, reach, -1)))
    for turn in range(rounds):
        drawn = seeding.integers(seeding.derive(keys, turn), 2 * reach, (*steps, 2)).numpy() - reach
        for i, row in enumerate(range(height - reach, reach, -1)):
            for j, column in enumerate(range(width - reach, reach, -1)):
                dx, dy = drawn[:, i, j].T
                blurred[:, row, column] = blurred[which, row + dy, column + dx]
    return smooth(blurred.transpose(0, 3, 1, 2), sigma)


def motion_blur(images: Array, keys: Tensor, radius: float, sigma: float) -> Array:
    """The camera moves, in a direction within 45° of the horizontal."""
    return moved(images, radius, sigma, uniform(keys, low=-45, high=45))


def zoom_blur(images: Array, keys: Tensor, until: float, step: float) -> Array:
    """The camera comes closer: the mean of the image and its enlargements, from 1 in steps."""
    factors = np.arange(1, until, step)
    total = images.copy()
    for factor in factors:
        total += zoomed(images, factor)
    return total / (len(factors) + 1)
