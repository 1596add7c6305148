"""Matrices of shares whose cells say their numbers."""

from collections.abc import Sequence
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from robench.reporting.plots import palette, style

_DARK = 55
"""Percent from which on a cell's text is white"""


def draw_cells(
    axes: Axes,
    shares: npt.NDArray[np.float64],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    fontsize: float = 0.78,
    aspect: Literal["equal", "auto"] = "equal",
) -> AxesImage:
    """Draw ``shares`` (rows, columns) in percent, NaN where there is nothing, which is grey, with a text in
    each cell.

    ``fontsize`` is a share of that of the axes' labels. Long names of columns stand upright.
    """
    colours = matplotlib.colormaps[palette.SHARES]
    image = axes.imshow(shares, cmap=colours, vmin=0, vmax=100, aspect=aspect)
    for row, column in np.ndindex(shares.shape):
        if not texts[row][column]:
            continue  # it would be measured at every layout
        colour = palette.WHITE if shares[row, column] >= _DARK else palette.BLACK
        axes.text(
            column,
            row,
            texts[row][column],
            ha="center",
            va="center",
            fontsize=style.relative(fontsize),
            color=colour,
        )
    turned = 90 if max(map(len, columns), default=0) > 3 else 0
    axes.set_xticks(range(len(columns)), columns, rotation=turned)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_facecolor(palette.NOTHING)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # Light cells beside each other are told apart by lines of paper.
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(rows)), minor=True)
    axes.grid(visible=True, which="minor", color=palette.WHITE, linewidth=1)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(False)
    return image
