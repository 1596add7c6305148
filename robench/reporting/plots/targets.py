"""From which class to which an adversary with targets leads: a matrix a model."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from robench.formatting import fixed
from robench.reporting.model_results import ModelResult, class_name
from robench.reporting.plots.cells import draw_cells
from robench.reporting.plots.style import captioned, describe, new_figure, styled
from robench.reporting.targeted import TargetCounts, target_counts, targets_name

_MOST_CLASSES = 20
_MOST_MODELS = 12
_IN_A_ROW = 3
_ROOM_FOR_COUNTS = 12
"""Classes up to which a cell has room for its counts"""


@styled
def targeted_success_matrix(results: Sequence[ModelResult]) -> Figure | None:
    """Success in percent by true class and target, with its counts where there is room; a grey cell
    was not tried. None where nothing was attacked.

    Of many classes, and of many models, those that are reached most often, 20 and 12 at most.
    """
    found = [(result, target_counts(result)) for result in results]
    found = [(result, counts) for result, counts in found if counts.attacked.any()]
    if not found:
        return None
    hidden = len(found) - _MOST_MODELS
    found = sorted(found, key=lambda item: -int(item[1].reached.sum()))[:_MOST_MODELS]
    found.sort(key=lambda item: item[0].model.name)
    labels, targets = shown = _shown([counts for _, counts in found])
    columns = min(len(found), _IN_A_ROW)
    rows = math.ceil(len(found) / columns)
    cell = 0.5 if max(map(len, shown)) <= _ROOM_FOR_COUNTS else 0.34
    width, height = (1.9 + cell * len(classes) for classes in (targets, labels))
    # The caption and the colours' scale want room beside a narrow matrix too.
    figure = new_figure(max(columns * width + 1.2, 4.5), rows * height + 0.8)
    every = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    image = None
    for axes, (result, counts) in zip(every, found, strict=False):
        image = _matrix(axes, result, counts, labels, targets)
    for axes in every[len(found) :]:
        axes.set_visible(False)
    assert image is not None
    figure.colorbar(
        image, ax=list(every), label="brought to the target, % of the attacked", shrink=0.8
    )
    more = f"; {hidden} models more are not shown" if hidden > 0 else ""
    rule = targets_name(found[0][0])
    captioned(figure, f"Targeted success, targets: {rule}{more}", describe([found[0][0]]))
    return figure


def _shown(counts: Sequence[TargetCounts]) -> tuple[list[int], list[int]]:
    """The true classes and the targets of all; of many those that are reached most often."""
    attacked = np.sum([c.attacked for c in counts], axis=0)
    reached = np.sum([c.reached for c in counts], axis=0)
    labels, targets = (
        [
            int(c)
            for c in np.sort(np.argsort(-often - tried, kind="stable")[:_MOST_CLASSES])
            if tried[c]
        ]
        for often, tried in ((reached.sum(axis), attacked.any(axis)) for axis in (1, 0))
    )
    return labels, targets


def _matrix(
    axes: Axes,
    result: ModelResult,
    counts: TargetCounts,
    labels: Sequence[int],
    targets: Sequence[int],
) -> AxesImage:
    attacked, reached = (
        part[np.ix_(labels, targets)] for part in (counts.attacked, counts.reached)
    )
    shares = np.full(attacked.shape, np.nan)
    np.divide(100.0 * reached, attacked, out=shares, where=attacked > 0)
    with_counts = max(len(labels), len(targets)) <= _ROOM_FOR_COUNTS

    def text(row: int, column: int) -> str:
        share = shares[row, column]
        if not attacked[row, column] or (share == 0 and not with_counts):
            return ""
        counts = f"\n{reached[row, column]}/{attacked[row, column]}" if with_counts else ""
        return fixed(share, 0) + counts

    texts = [[text(row, column) for column in range(len(targets))] for row in range(len(labels))]
    names, aims = (
        [class_name(result.dataset, c) for c in classes] for classes in (labels, targets)
    )
    image = draw_cells(axes, shares, texts, names, aims, fontsize=0.67)
    axes.set(xlabel="target", ylabel="true class", title=result.model.name)
    return image
