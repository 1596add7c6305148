"""A few samples: clean, adversarial, perturbation, and where the model looked before and after."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from robench.errors import StoreError
from robench.records import EvaluationRecord
from robench.reporting.model_results import ModelResult, class_name
from robench.reporting.plots import palette
from robench.reporting.plots.style import captioned, new_figure, relative, styled, threat_text
from robench.results import SamplePanel, Store
from robench.results.panels import read_panel
from robench.top_cells import top_cells

log = logging.getLogger("robench.reporting")

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.integer[Any]]

_AFTER: dict[str, Any] = {"color": palette.VERMILION, "linewidth": 1.4}
_BEFORE: dict[str, Any] = {"color": palette.WHITE, "linewidth": 1.0, "linestyle": (0, (3, 2))}

_PANEL = ("clean", "adversarial", "perturbation", "attention, clean", "attention, adversarial")
_OVERLAYS = (*_PANEL[:2], *_PANEL[3:], "top eighths")


def kept_samples(results: Sequence[ModelResult], attack: str) -> Figure | None:
    """:func:`sample_panel` of one model's samples that are kept beside the record of an attack; None
    where there are none. Damaged ones are logged and left out: the record itself is sound."""
    (result,) = results
    stored = result.attacks[attack]
    if stored.arrays_path is None:
        return None
    try:
        panel = read_panel(Store(stored.folder), stored)
    except StoreError as error:
        log.warning("no sample panel: %s", error)
        return None
    return None if panel is None else sample_panel(panel, stored.record)


@styled
def sample_panel(panel: SamplePanel, record: EvaluationRecord) -> Figure | None:
    """One row a sample, five columns.

    The perturbation is scaled so that grey is 0 and ±ε (or the largest entry, for other norms
    than L∞) are black and white. Maps lie over the greyed image; a line encloses their largest
    eighth of cells, the part that ``attention_deviation`` compares; beside the adversarial map
    a dashed line repeats the clean map's. None for an empty panel.
    """
    if not len(panel):
        return None
    figure = new_figure(6.8, 0.9 + 1.28 * len(panel))
    grid = _panel_grid(figure, panel, record, _PANEL)
    linf = record.threat_model.norm == "Linf"
    for row, (clean, adversarial) in enumerate(zip(panel.clean, panel.adversarial, strict=True)):
        perturbation = adversarial - clean
        scale = record.threat_model.radius if linf else float(np.abs(perturbation).max())
        _show_image(grid[row, 2], 0.5 + 0.5 * perturbation / max(scale, 1e-12))
        _overlay(grid[row, 3], clean, panel.clean_maps[row])
        _overlay(grid[row, 4], adversarial, panel.adv_maps[row])
        if _is_defined(panel.clean_maps[row]):
            _outline(grid[row, 4], _top_eighth(panel.clean_maps[row]), clean.shape, _BEFORE)
    title = f"{record.model.name} under {record.attack.name}"
    captioned(figure, title, _conditions(record, len(panel)))
    return figure


@styled
def attention_overlays(panel: SamplePanel, record: EvaluationRecord) -> Figure | None:
    """One row a sample: both images, both maps, and how the maps' top eighths overlap.

    Maps lie over the greyed image, their largest eighth of cells enclosed; the last column shows
    which of these cells are the clean map's alone, the adversarial map's alone, or both's, and
    the ``attention_deviation`` that follows. None for an empty panel.
    """
    if not len(panel):
        return None
    figure = new_figure(6.8, 1.2 + 1.28 * len(panel))
    grid = _panel_grid(figure, panel, record, _OVERLAYS)
    for row, (clean, adversarial) in enumerate(zip(panel.clean, panel.adversarial, strict=True)):
        _overlay(grid[row, 2], clean, panel.clean_maps[row])
        _overlay(grid[row, 3], adversarial, panel.adv_maps[row])
        _overlap(grid[row, 4], clean, panel.clean_maps[row], panel.adv_maps[row])
    handles = [
        Patch(fc=colour, ec=palette.BLACK, label=name) for name, colour in palette.OVERLAP.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(palette.OVERLAP))
    method = record.attention_method or "no maps"
    title = f"Attention of {record.model.name} under {record.attack.name} ({method})"
    captioned(figure, title, _conditions(record, len(panel)))
    return figure


@styled
def resisted_by_one(
    models: tuple[str, str],
    record: EvaluationRecord,
    sample_ids: Sequence[str],
    labels: Classes,
    clean: Floats,
    adversarial: Sequence[Floats],
    predictions: Sequence[Classes],
) -> Figure | None:
    """Samples that only one of two models resists, a row each: the clean image, and what each
    model's attack made of it; None without samples.

    Args:
        models: the two names.
        record: of either model; names the data, the threat model and the attack.
        sample_ids, labels: of the k samples, (k,).
        clean: images (k, H, W, C) in [0, 1].
        adversarial, predictions: each model's adversarial images, likewise, and its classes under
            attack, (k,); −1 where unknown.
    """
    k = len(sample_ids)
    if not k:
        return None
    figure = new_figure(5.2, 0.9 + 1.5 * k)
    titles = ("clean", *(f"under attack: {name}" for name in models))
    columns = [(clean, np.full(k, -1)), *zip(adversarial, predictions, strict=True)]
    _grid(figure, record, titles, sample_ids, labels, columns, wrap=True)
    title = f"Resisted by one of {models[0]} and {models[1]} ({record.attack.name})"
    captioned(figure, title, _conditions(record, k))
    return figure


def _panel_grid(
    figure: Figure, panel: SamplePanel, record: EvaluationRecord, titles: Sequence[str]
) -> npt.NDArray[np.object_]:
    """:func:`_grid` whose first two columns are the clean and the adversarial image."""
    columns = ((panel.clean, panel.clean_predictions), (panel.adversarial, panel.adv_predictions))
    return _grid(figure, record, titles, panel.sample_ids, panel.labels, columns)


def _grid(
    figure: Figure,
    record: EvaluationRecord,
    titles: Sequence[str],
    sample_ids: Sequence[str],
    labels: Classes,
    columns: Sequence[tuple[Floats, Classes]],
    *,
    wrap: bool = False,
) -> npt.NDArray[np.object_]:
    """Axes (k, titles), a row a sample with its id and class beside it; in the first columns the
    images (k, H, W, C), each with the class (k,) predicted for it below; −1 where unknown."""
    grid: npt.NDArray[np.object_]
    grid = figure.subplots(len(sample_ids), len(titles), squeeze=False)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=relative(0.9), loc="center", wrap=wrap)
    for row, (name, label) in enumerate(zip(sample_ids, labels, strict=True)):
        short = name if len(name) <= 18 else f"…{name[-17:]}"
        true = class_name(record.dataset, int(label))
        grid[row, 0].set_ylabel(f"{short}\ntrue: {true}", fontsize=relative(0.78))
        for axes, (images, predictions) in zip(grid[row], columns, strict=False):
            _show_image(axes, images[row])
            if (predicted := int(predictions[row])) >= 0:
                wrong = predicted != label
                text = f"{'✗' if wrong else '✓'} {class_name(record.dataset, predicted)}"
                colour = palette.WRONG if wrong else palette.BLACK
                axes.set_xlabel(text, fontsize=relative(0.9), color=colour, labelpad=2)
    return grid


def _conditions(record: EvaluationRecord, k: int) -> str:
    data, threat = f"{record.dataset.name} ({record.dataset.split})", record.threat_model
    return f"{data}, {threat_text(threat)}, {k} of n = {record.n}"


def _show_image(axes: Axes, image: Floats) -> None:
    """Draw one image (H, W, 1 or 3) in [0, 1], without axes."""
    shown = np.clip(image, 0, 1)
    axes.imshow(shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="gray", vmin=0, vmax=1)
    _bare(axes)


def _show_greyed(axes: Axes, image: Floats) -> dict[str, Any]:
    """Draw an image (H, W, C) in light grey; how a map is laid over all of it."""
    grey = np.clip(image, 0, 1).mean(axis=-1)
    height, width = grey.shape
    axes.imshow(0.35 + 0.65 * grey, cmap="gray", vmin=0, vmax=1)
    return {"extent": (-0.5, width - 0.5, height - 0.5, -0.5), "interpolation": "nearest"}


def _overlay(axes: Axes, image: Floats, attention: Floats) -> None:
    """Lay a map (h, w) over the greyed image (H, W, C), its largest eighth of cells enclosed."""
    place = _show_greyed(axes, image)
    if _is_defined(attention):
        shares = attention / attention.max()
        axes.imshow(shares, cmap=palette.ATTENTION, vmin=0, vmax=1, alpha=0.65, **place)
        _outline(axes, _top_eighth(attention), image.shape, _AFTER)
    else:
        axes.text(0.5, 0.5, "empty", transform=axes.transAxes, ha="center", va="center")
    _bare(axes)


def _overlap(axes: Axes, image: Floats, before: Floats, after: Floats) -> None:
    """Whose cells of the two top eighths are, over the greyed image."""
    place = _show_greyed(axes, image)
    _bare(axes)
    if not (_is_defined(before) and _is_defined(after)):
        axes.text(0.5, 0.5, "undefined", transform=axes.transAxes, ha="center", va="center")
        return
    first, second = _top_eighth(before), _top_eighth(after)
    colours = ListedColormap(list(palette.OVERLAP.values()))
    # Numbered in the order of the shares; 0 is nobody's.
    codes = np.select([first & ~second, first & second, second], [1, 2, 3])
    shown = np.ma.masked_equal(codes, 0)
    axes.imshow(shown, cmap=colours, vmin=1, vmax=len(palette.OVERLAP), alpha=0.8, **place)
    _outline(axes, first, image.shape, _BEFORE)
    _outline(axes, second, image.shape, _AFTER)
    deviation = 1 - (first & second).sum() / (first | second).sum()
    axes.set_xlabel(f"deviation {deviation:.2f}", fontsize=relative(0.9), labelpad=2)


def _is_defined(attention: Floats) -> bool:
    """Whether a map has something to show: finite, and not zero throughout."""
    return bool(np.isfinite(attention).all() and attention.max() > 0)


def _top_eighth(attention: Floats) -> Bools:
    return np.asarray(top_cells(attention[None])[0])


def _outline(axes: Axes, cells: Bools, image_shape: tuple[int, ...], line: dict[str, Any]) -> None:
    """Draw the border between cells inside and outside, along the cells' edges."""
    xs = np.linspace(-0.5, image_shape[1] - 0.5, cells.shape[1] + 1)
    ys = np.linspace(-0.5, image_shape[0] - 0.5, cells.shape[0] + 1)
    padded = np.pad(cells, 1)
    upright = np.argwhere(padded[1:-1, :-1] != padded[1:-1, 1:])
    level = np.argwhere(padded[:-1, 1:-1] != padded[1:, 1:-1])
    borders = [[(xs[column], ys[row]), (xs[column], ys[row + 1])] for row, column in upright]
    borders += [[(xs[column], ys[row]), (xs[column + 1], ys[row])] for row, column in level]
    # One collection: a line each would be most of what a figure of several samples costs.
    lines = LineCollection(borders, **line, capstyle="projecting", clip_on=False)
    axes.add_collection(lines, autolim=False)


def _bare(axes: Axes) -> None:
    """Take away ticks, grid and frame."""
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
