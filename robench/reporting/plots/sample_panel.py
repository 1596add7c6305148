"""A few samples: clean, adversarial, perturbation, and where the model looked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.records import EvaluationRecord
from robench.reporting.model_results import class_name
from robench.reporting.plots.style import captioned, new_figure, styled, threat_text
from robench.results import SamplePanel

__all__ = [
    "AFTER",
    "BEFORE",
    "bare",
    "is_defined",
    "label_row",
    "outline",
    "overlay",
    "sample_panel",
    "show_image",
    "top_eighth",
]

AFTER: dict[str, Any] = {"color": "#D55E00", "linewidth": 1.4}
BEFORE: dict[str, Any] = {"color": "white", "linewidth": 1.0, "linestyle": (0, (3, 2))}

_COLUMNS = ("clean", "adversarial", "perturbation", "attention, clean", "attention, adversarial")


@styled
def sample_panel(panel: SamplePanel, record: EvaluationRecord) -> Figure | None:
    """One row a sample, five columns.

    The perturbation is scaled so that grey is 0 and ±ε (or the largest entry, for other norms
    than L∞) are black and white. Maps lie over the greyed image; a line encloses their largest
    eighth of cells, the part that ``attention_deviation`` compares; beside the adversarial map
    a dashed line repeats the clean map's.

    Returns:
        None for an empty panel.
    """
    k = len(panel)
    if not k:
        return None
    figure = new_figure(7.6, 0.9 + 1.42 * k)
    grid = figure.subplots(k, len(_COLUMNS), squeeze=False)
    linf = record.threat_model.norm == "Linf"
    for row in range(k):
        clean, adversarial = panel.clean[row], panel.adversarial[row]
        perturbation = adversarial - clean
        scale = record.threat_model.radius if linf else float(np.abs(perturbation).max())
        show_image(grid[row, 0], clean)
        show_image(grid[row, 1], adversarial)
        show_image(grid[row, 2], 0.5 + 0.5 * perturbation / max(scale, 1e-12))
        overlay(grid[row, 3], clean, panel.clean_maps[row])
        overlay(grid[row, 4], adversarial, panel.adv_maps[row])
        if is_defined(panel.clean_maps[row]):
            outline(grid[row, 4], top_eighth(panel.clean_maps[row]), clean.shape, BEFORE)
        label_row(grid[row], panel, row, record)
    for axes, title in zip(grid[0], _COLUMNS, strict=True):
        axes.set_title(title, fontsize=8, loc="center")
    captioned(
        figure,
        f"{record.model.name} under {record.attack.name}",
        f"{record.dataset.name} ({record.dataset.split}), {threat_text(record.threat_model)}, "
        f"{k} of n = {record.n}",
    )
    return figure


def label_row(
    grid: npt.NDArray[np.object_], panel: SamplePanel, row: int, record: EvaluationRecord
) -> None:
    """Write a sample's id and class beside its row, predictions below the first two columns.

    Args:
        grid: the row's axes, the clean and the adversarial image first.
        panel: the samples.
        row: which one.
        record: whose data set names the classes.
    """
    label, before, after = (
        int(values[row])
        for values in (panel.labels, panel.clean_predictions, panel.adv_predictions)
    )
    grid[0].set_ylabel(
        f"{_short(panel.sample_ids[row])}\ntrue: {class_name(record.dataset, label)}",
        fontsize=7,
    )
    for column, predicted in ((0, before), (1, after)):
        if predicted >= 0:
            wrong = predicted != label
            grid[column].set_xlabel(
                f"{'✗' if wrong else '✓'} {class_name(record.dataset, predicted)}",
                fontsize=8,
                color="#B00000" if wrong else "black",
                labelpad=2,
            )


def show_image(axes: Axes, image: npt.NDArray[np.floating]) -> None:
    """Draw one image (H, W, 1 or 3) in [0, 1], without axes."""
    shown = np.clip(image, 0, 1)
    axes.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
    bare(axes)


def overlay(
    axes: Axes, image: npt.NDArray[np.floating], attention: npt.NDArray[np.floating]
) -> None:
    """Lay a map (h, w) over the greyed image (H, W, C), its largest eighth of cells enclosed."""
    grey = np.clip(image, 0, 1).mean(axis=-1)
    height, width = grey.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1)
    if is_defined(attention):
        axes.imshow(
            attention / attention.max(),
            cmap="cividis",
            vmin=0,
            vmax=1,
            alpha=0.65,
            extent=extent,
            interpolation="nearest",
        )
        outline(axes, top_eighth(attention), image.shape, AFTER)
    else:
        axes.text(0.5, 0.5, "empty", transform=axes.transAxes, ha="center", va="center")
    bare(axes)


def is_defined(attention: npt.NDArray[np.floating]) -> bool:
    """Whether a map has something to show: finite, and not zero throughout."""
    return bool(np.isfinite(attention).all() and attention.max() > 0)


def top_eighth(attention: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """The largest eighth of a map's cells (h, w), rounded up, equal ones by place."""
    kept = -(-attention.size // 8)
    order = np.argsort(-attention, axis=None, kind="stable")[:kept]
    top = np.zeros(attention.size, dtype=bool)
    top[order] = True
    return top.reshape(attention.shape)


def outline(
    axes: Axes, cells: npt.NDArray[np.bool_], image_shape: tuple[int, ...], line: dict[str, Any]
) -> None:
    """Draw the border between cells inside and outside, along the cells' edges."""
    xs = np.linspace(-0.5, image_shape[1] - 0.5, cells.shape[1] + 1)
    ys = np.linspace(-0.5, image_shape[0] - 0.5, cells.shape[0] + 1)
    padded = np.pad(cells, 1)
    for row, column in np.argwhere(padded[1:-1, :-1] != padded[1:-1, 1:]):
        axes.plot([xs[column]] * 2, ys[row : row + 2], **line, clip_on=False)
    for row, column in np.argwhere(padded[:-1, 1:-1] != padded[1:, 1:-1]):
        axes.plot(xs[column : column + 2], [ys[row]] * 2, **line, clip_on=False)


def bare(axes: Axes) -> None:
    """Take away ticks, grid and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(sample_id: str) -> str:
    return sample_id if len(sample_id) <= 18 else f"…{sample_id[-17:]}"
