"""Where the model looked before and after the attack, and what the two have in common."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from robench.records import EvaluationRecord
from robench.reporting.plots.sample_panel import (
    AFTER,
    BEFORE,
    bare,
    is_defined,
    label_row,
    outline,
    overlay,
    show_image,
    top_eighth,
)
from robench.reporting.plots.style import captioned, new_figure, styled, threat_text
from robench.results import SamplePanel

__all__ = ["attention_overlays"]

_COLUMNS = ("clean", "adversarial", "attention, clean", "attention, adversarial", "top eighths")

# Light, middle and dark, so that they differ in greyscale too.
_SHARES = {"clean only": "#56B4E9", "both": "#F0E442", "adversarial only": "#A34700"}
_CODES = {name: number for number, name in enumerate(_SHARES, start=1)}


@styled
def attention_overlays(panel: SamplePanel, record: EvaluationRecord) -> Figure | None:
    """One row a sample: both images, both maps, and how the maps' top eighths overlap.

    Maps lie over the greyed image, their largest eighth of cells enclosed; the last column shows
    which of these cells are the clean map's alone, the adversarial map's alone, or both's, and
    the ``attention_deviation`` that follows.

    Args:
        panel: the samples with their maps.
        record: whose samples they are; names model, attack, data and classes.

    Returns:
        None for an empty panel.
    """
    k = len(panel)
    if not k:
        return None
    figure = new_figure(7.6, 1.2 + 1.42 * k)
    grid = figure.subplots(k, len(_COLUMNS), squeeze=False)
    for row in range(k):
        clean, adversarial = panel.clean[row], panel.adversarial[row]
        maps = panel.clean_maps[row], panel.adv_maps[row]
        show_image(grid[row, 0], clean)
        show_image(grid[row, 1], adversarial)
        overlay(grid[row, 2], clean, maps[0])
        overlay(grid[row, 3], adversarial, maps[1])
        _overlap(grid[row, 4], clean, *maps)
        label_row(grid[row], panel, row, record)
    for axes, title in zip(grid[0], _COLUMNS, strict=True):
        axes.set_title(title, fontsize=8, loc="center")
    figure.legend(
        handles=[
            Patch(facecolor=colour, edgecolor="black", label=name)
            for name, colour in _SHARES.items()
        ],
        loc="outside lower center",
        ncols=len(_SHARES),
    )
    captioned(
        figure,
        f"Attention of {record.model.name} under {record.attack.name}"
        f" ({record.attention_method or 'no maps'})",
        f"{record.dataset.name} ({record.dataset.split}), {threat_text(record.threat_model)}, "
        f"{k} of n = {record.n}",
    )
    return figure


def _overlap(
    axes: Axes,
    image: npt.NDArray[np.floating],
    before: npt.NDArray[np.floating],
    after: npt.NDArray[np.floating],
) -> None:
    grey = np.clip(image, 0, 1).mean(axis=-1)
    height, width = grey.shape
    axes.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1)
    bare(axes)
    if not (is_defined(before) and is_defined(after)):
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", va="center")
        return
    first, second = top_eighth(before), top_eighth(after)
    codes = np.zeros(first.shape, dtype=np.int64)
    codes[first & ~second] = _CODES["clean only"]
    codes[first & second] = _CODES["both"]
    codes[~first & second] = _CODES["adversarial only"]
    axes.imshow(
        np.ma.masked_equal(codes, 0),
        cmap=ListedColormap(list(_SHARES.values())),
        vmin=1,
        vmax=len(_SHARES),
        alpha=0.8,
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        interpolation="nearest",
    )
    outline(axes, first, image.shape, BEFORE)
    outline(axes, second, image.shape, AFTER)
    deviation = 1 - (first & second).sum() / (first | second).sum()
    axes.set_xlabel(f"deviation {deviation:.2f}", fontsize=8, labelpad=2)
