"""Noise of sensors and counting: each pixel for itself.

Every function takes images, float64 (N, C, H, W) on the 256 grey levels in [0, 1], keys, int64 (N,)
of all draws, and the constants of a severity. It gives float64 (N, C, H, W), not clipped yet.
"""

from __future__ import annotations

import numpy as np
from scipy.special import pdtr
from torch import Tensor

from robench import seeding
from robench.corruptions.images import Array, grey_levels


def normal(keys: Tensor, shape: tuple[int, ...]) -> Array:
    """Standard normal draws, float64 (N, *shape)."""
    return np.asarray(seeding.normal(keys, shape).numpy(), np.float64)


def uniform(
    keys: Tensor, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0
) -> Array:
    """Uniform draws from ``low`` to ``high``, float64 (N, *shape)."""
    drawn = np.asarray(seeding.uniform(keys, shape).numpy(), np.float64)
    return low + (high - low) * drawn


def gaussian_noise(images: Array, keys: Tensor, scale: float) -> Array:
    """Normal noise of standard deviation ``scale``, [0, 1] pixel units."""
    return images + scale * normal(keys, images.shape[1:])


def speckle_noise(images: Array, keys: Tensor, scale: float) -> Array:
    """Normal noise in proportion to the pixel."""
    return images * (1 + scale * normal(keys, images.shape[1:]))


def impulse_noise(images: Array, keys: Tensor, amount: float) -> Array:
    """A share ``amount`` of the values becomes 0 or 1."""
    hit = uniform(seeding.derive(keys, 1), images.shape[1:]) < amount
    salt = uniform(seeding.derive(keys, 2), images.shape[1:]) < 0.5
    return np.where(hit, np.where(salt, 1.0, 0.0), images)


def shot_noise(images: Array, keys: Tensor, rate: float) -> Array:
    """Counted light: a pixel of value x is a Poisson draw of mean ``rate``·x, over ``rate``.

    Drawn by inversion: grey levels are 256, so their distributions are tables of 256 rows.
    """
    mean = np.arange(256) / 255 * rate
    most = int(rate + 10 * np.sqrt(rate) + 10)
    # Row v lies between v and v + 1, so that one search in all rows together finds each draw.
    rows = np.minimum(pdtr(np.arange(most), mean[:, None]), 1.0) + np.arange(256)[:, None]
    levels = grey_levels(images)
    draws = levels + uniform(keys, images.shape[1:])
    counts = np.searchsorted(rows.ravel(), draws, side="right") - levels * most
    return np.asarray(np.clip(counts, 0, most) / rate)
