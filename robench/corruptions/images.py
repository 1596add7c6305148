"""What corruptions share: grey levels, resampling, motion, and noise that looks like clouds.

Images are float64 (N, C, H, W) in [0, 1]; layers of one channel are (N, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue in what the eye takes for brightness (ITU-R BT.601)"""


def grey_levels(images: Array) -> npt.NDArray[np.int64]:
    """0 to 255, the nearest one."""
    return np.rint(images * 255).astype(np.int64)


def cut_to_levels(images: Array) -> Array:
    """Clipped to [0, 1] and cut down to one of 256 grey levels, as images are stored."""
    # What is a level but for rounding stays one.
    return np.asarray(np.floor(np.clip(images, 0, 1) * 255 + 1e-6) / 255)


def brightness_of(images: Array) -> Array:
    """(N, C, H, W) → (N, 1, H, W): the luminance of colours; of other channels their mean."""
    if images.shape[1] == 3:
        return np.asarray(np.tensordot(LUMINANCE, images, axes=(0, 1)))[:, None]
    return np.asarray(images.mean(axis=1, keepdims=True))


def tinted(layer: Array, colour: tuple[float, float, float], channels: int) -> Array:
    """A layer (N, H, W) times a colour in [0, 1]: (N, C, H, W); its luminance without three channels."""
    shades = np.array(colour)
    if channels != 3:
        shades = np.full(channels, float(LUMINANCE @ shades))
    return np.asarray(layer[:, None] * shades[:, None, None])


def zoom_matrix(size: int, factor: float) -> Array:
    """(size, size): linear interpolation that enlarges the middle of an axis by ``factor``.

    The middle ⌈size / factor⌉ pixels, end on end, become ``factor`` times as many, of which the middle
    ``size`` are kept.
    """
    kept = int(np.ceil(size / factor))
    first = (size - kept) // 2
    made = round(kept * factor)
    trim = (made - size) // 2
    places = (np.arange(size) + trim) * (kept - 1) / max(made - 1, 1)
    below = np.minimum(places.astype(int), kept - 1)
    share, rows = places - below, np.arange(size)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (rows, first + below), 1 - share)
    np.add.at(matrix, (rows, first + np.minimum(below + 1, kept - 1)), share)
    return matrix


def zoomed(images: Array, factor: float) -> Array:
    """The middle of images (…, H, W), enlarged to their size."""
    height, width = (zoom_matrix(size, factor) for size in images.shape[-2:])
    return np.asarray(height @ images @ width.T)


def moved(images: Array, radius: float, sigma: float, angles: Array) -> Array:
    """Images (N, C, H, W) smeared to one side along ``angles``, (N,) in degrees.

    Each pixel is a mean of those up to 2·radius away, weighted by half a Gaussian; beyond the edge the
    edge goes on. The rule is that of ImageMagick's motion blur.
    """
    taps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    weights /= weights.sum()
    down, right = (
        np.ceil(taps[:, None] * f(np.deg2rad(angles)) - 0.5).astype(int) for f in (np.sin, np.cos)
    )
    count, _, height, width = images.shape
    which, result = np.arange(count)[:, None, None], np.zeros_like(images)
    last = images.transpose(0, 2, 3, 1)  # an index of all but the channel
    for weight, dy, dx in zip(weights, down, right, strict=True):
        rows = np.clip(np.arange(height) + dy[:, None], 0, height - 1)[:, :, None]
        columns = np.clip(np.arange(width) + dx[:, None], 0, width - 1)[:, None, :]
        result += weight * last[which, rows, columns].transpose(0, 3, 1, 2)
    return result


def mirrored(places: Array, size: int, repeat_edge: bool) -> Array:
    """Places on an axis of ``size`` pixels, those beyond it reflected; at the edge's pixel, or where
    the edge is repeated, half a pixel beyond it."""
    shift = 0.5 if repeat_edge else 0.0
    period = max(2 * (size - 1 + 2 * shift), 1)
    folded = np.mod(places + shift, period)
    return np.clip(np.minimum(folded, period - folded) - shift, 0, size - 1)


def sampled(images: Array, rows: Array, columns: Array, *, repeat_edge: bool) -> Array:
    """Images (N, C, H, W) at real places (N, H, W), linearly interpolated, mirrored beyond the edge."""
    height, width = images.shape[-2:]
    result = np.zeros_like(images)
    which = np.arange(len(images))[:, None, None]
    last = images.transpose(0, 2, 3, 1)
    top, left = np.floor(rows), np.floor(columns)
    for dy in (0, 1):
        for dx in (0, 1):
            share = np.abs(1 - dy - (rows - top)) * np.abs(1 - dx - (columns - left))
            at_row = mirrored(top + dy, height, repeat_edge).astype(int)
            at_column = mirrored(left + dx, width, repeat_edge).astype(int)
            part = last[which, at_row, at_column] * share[..., None]
            result += part.transpose(0, 3, 1, 2)
    return result


def clouds(
    draw: Callable[[int, tuple[int, ...]], Array], count: int, size: int, decay: float
) -> Array:
    """Plasma fractals by the diamond-square algorithm: (count, size, size) from 0 to 1.

    Args:
        draw: uniform draws in [-1, 1) for a number of their own and a shape (rows, columns).
        count: images.
        size: a power of two.
        decay: by how much the noise's amplitude shrinks from one scale to the next.
    """
    heights, step, noise = np.zeros((count, size, size)), size, 100.0
    number = 0

    def middle(*neighbours: Array) -> Array:
        nonlocal number
        number += 1
        mean = sum(neighbours[1:], neighbours[0]) / 4
        return mean + noise**2 * draw(number, mean.shape[1:])

    def before(grid: Array, axis: int) -> Array:
        return np.roll(grid, 1, axis)

    def after(grid: Array, axis: int) -> Array:
        return np.roll(grid, -1, axis)

    while step >= 2:
        corner = heights[:, ::step, ::step]
        below = after(corner, 1)
        half = slice(step // 2, None, step)
        heights[:, half, half] = middle(corner, below, after(corner, 2), after(below, 2))
        centre = heights[:, half, half]
        heights[:, ::step, half] = middle(centre, before(centre, 1), corner, after(corner, 2))
        heights[:, half, ::step] = middle(centre, before(centre, 2), corner, after(corner, 1))
        step, noise = step // 2, noise / decay
    return spread(heights)


def spread(layers: Array) -> Array:
    """Layers (N, H, W), each shifted and scaled to go from 0 to 1; one that is flat is 0."""
    low, high = (reduce(layers, axis=(1, 2), keepdims=True) for reduce in (np.min, np.max))
    return np.asarray((layers - low) / np.where(high > low, high - low, 1.0))


def each(function: Callable[..., Any], *columns: Any) -> Array:
    """``function`` of one row after the other, its results together."""
    return np.stack([np.asarray(function(*row)) for row in zip(*columns, strict=True)])
