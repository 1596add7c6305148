"""Drops on the lens: water that shines where it bends the light, or mud.

The function is as in :mod:`robench.corruptions.noise`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate, distance_transform_edt, label, uniform_filter
from torch import Tensor

from robench.corruptions.blur import smooth
from robench.corruptions.images import Array, each, tinted
from robench.corruptions.noise import normal

_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_WEAK, _STRONG = 50, 150  # slopes of edges, in grey levels
_FARTHEST = 20.0  # pixels from an edge
_LIT_FROM = np.array([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])
_SLOPE = np.array([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])


def spatter(
    images: Array,
    keys: Tensor,
    amount: float,
    scale: float,
    drop: float,
    least: float,
    strength: float,
    mud: int,
) -> Array:
    """Water or ``mud`` (1).

    Args:
        images, keys: as above.
        amount, scale: mean and standard deviation of the noise that drops are made of.
        drop: the Gaussian by which it is smoothed, in pixels.
        least: what of it is no drop.
        strength: of the water; of mud the Gaussian by which its edge is smoothed, in pixels.
        mud: 1, or 0 for water.
    """
    liquid = smooth(amount + scale * normal(keys, images.shape[2:]), drop)
    if mud:
        cover = smooth((liquid >= least).astype(np.float64), strength)
        cover[cover < 0.8] = 0
        return images * (1 - cover[:, None]) + tinted(cover, _MUD, images.shape[1])
    levels = np.floor(np.where(liquid < least, 0.0, liquid).clip(0, 1) * 255)
    shine = levels * each(_shine, levels)
    brightest = shine.max(axis=(1, 2), keepdims=True)
    shine = strength * shine / np.where(brightest > 0, brightest, 1.0)
    return images + tinted(shine, _WATER, images.shape[1])


def _shine(levels: Array) -> Array:
    """How water shines, (H, W) in grey levels: by the slope of the distance from its edges."""
    edge = edges(levels)
    # Without an edge every pixel is far from one.
    away = distance_transform_edt(~edge) if edge.any() else np.full(levels.shape, _FARTHEST)
    depth = _levels(_mean_of_nine(np.minimum(away, _FARTHEST)), np.floor)
    lit = _levels(correlate(_equalised(depth), _LIT_FROM, mode="mirror"))
    return _levels(_mean_of_nine(lit))


def _mean_of_nine(layer: Array) -> Array:
    return np.asarray(uniform_filter(layer, 3, mode="mirror"))


def _levels(layer: Array, to_whole: np.ufunc = np.rint) -> Array:
    return np.asarray(np.clip(to_whole(layer + 1e-9), 0, 255))


def _equalised(levels: Array) -> Array:
    """Grey levels stretched so that each is as frequent as can be; one level alone stays."""
    counts = np.bincount(levels.astype(int).ravel(), minlength=256)
    first = int(np.flatnonzero(counts)[0])
    others = levels.size - int(counts[first])
    if others == 0:
        return levels
    below = np.cumsum(counts) - counts[first]
    return np.asarray(_levels(below * 255 / others)[levels.astype(int)])


def edges(levels: Array) -> npt.NDArray[np.bool_]:
    """bool (H, W): edges of a layer of grey levels, one pixel wide (Canny 1986).

    Of slopes by Sobel's operator those that are largest across the edge, strong ones and weak ones
    that hang together with a strong one.
    """
    across = correlate(levels, _SLOPE, mode="nearest")
    down = correlate(levels, _SLOPE.T, mode="nearest")
    slope = np.abs(across) + np.abs(down)
    padded = np.pad(slope, 1)
    height, width = levels.shape

    def beside(dy: int, dx: int) -> Array:
        return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steep, flat = (
        np.abs(down) > 2.4142135 * np.abs(across),
        np.abs(down) < 0.4142135 * np.abs(across),
    )
    rising = across * down > 0
    largest = np.select(
        [flat, steep, rising],
        [
            (slope > beside(0, -1)) & (slope >= beside(0, 1)),
            (slope > beside(-1, 0)) & (slope >= beside(1, 0)),
            (slope > beside(-1, -1)) & (slope > beside(1, 1)),
        ],
        (slope > beside(-1, 1)) & (slope > beside(1, -1)),
    )
    weak = largest & (slope > _WEAK)
    parts, _ = label(weak, np.ones((3, 3)))
    strong = np.unique(parts[weak & (slope > _STRONG)])
    return np.asarray(np.isin(parts, strong[strong > 0]))
