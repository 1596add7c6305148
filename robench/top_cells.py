"""The cells of a map that count: its largest ones. Without torch, for metrics and for figures."""

from typing import Any

import numpy as np
import numpy.typing as npt

TOP_SHARE = 8
"""The top eighth of the cells is binarised, as AERP does (8 of 64; Wu et al. 2022)."""

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]


def largest_cells(maps: Floats, count: npt.NDArray[np.integer[Any]] | int) -> Bools:
    """Mask of the ``count`` largest cells, one number or (N,), of maps (N, h, w); equal cells by
    lowest flat index."""
    flat = maps.reshape(len(maps), maps.shape[1] * maps.shape[2])
    order = np.argsort(-flat, axis=1, kind="stable")
    kept = np.arange(flat.shape[1]) < np.reshape(count, (-1, 1))
    top = np.zeros(flat.shape, dtype=bool)
    np.put_along_axis(top, order, np.broadcast_to(kept, flat.shape), axis=1)
    return top.reshape(maps.shape)


def top_cells(maps: Floats) -> Bools:
    """The ceil(h·w / 8) largest cells of maps (N, h, w)."""
    return largest_cells(maps, -(-maps.shape[1] * maps.shape[2] // TOP_SHARE))
