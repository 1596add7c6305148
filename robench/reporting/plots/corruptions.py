"""Accuracy by corruption and severity: a map a model."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from robench.formatting import fixed
from robench.records.corruptions import BENCHMARK, FURTHER, SEVERITIES
from robench.reporting.corruptions import corruptions_acc, main_attack, trial_verdicts
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import palette
from robench.reporting.plots.style import captioned, describe, new_figure, styled

_MOST_MODELS = 12
_IN_A_ROW = 4


@styled
def corruption_map(results: Sequence[ModelResult]) -> Figure | None:
    """Accuracy in percent by corruption and severity, the most accurate models first, 12 at most; None
    where nothing was corrupted."""
    found = [(result, trial_verdicts(result, main_attack(result))) for result in results]
    found = [(result, verdicts) for result, verdicts in found if verdicts]
    if not found:
        return None
    means = {id(result): corruptions_acc(result).estimate for result, _ in found}
    found.sort(key=lambda item: (-np.nan_to_num(means[id(item[0])], nan=-1.0), item[0].model.name))
    hidden, found = len(found) - _MOST_MODELS, found[:_MOST_MODELS]
    names = [n for n in (*BENCHMARK, *FURTHER) if any(n in verdicts for _, verdicts in found)]
    columns = min(len(found), _IN_A_ROW)
    rows = math.ceil(len(found) / columns)
    figure = new_figure(2.6 + 2.0 * columns, 0.9 + rows * (0.7 + 0.22 * len(names)))
    every = np.atleast_1d(figure.subplots(rows, columns, squeeze=False, sharey=True)).ravel()
    image = None
    for axes, (result, verdicts) in zip(every, found, strict=False):
        shares = np.full((len(names), len(SEVERITIES)), np.nan)
        for row, name in enumerate(names):
            if name in verdicts:
                shares[row] = verdicts[name].mean(axis=0)
        image = axes.imshow(shares, cmap=palette.SHARES, vmin=0, vmax=100, aspect="auto")
        for row, column in np.argwhere(~np.isnan(shares)).tolist():
            share = shares[row, column]
            colour = palette.WHITE if share > 60 else palette.BLACK
            axes.text(
                column, row, fixed(share, 0), ha="center", va="center", fontsize=6, color=colour
            )
        mean = means[id(result)]
        title = result.model.name if math.isnan(mean) else f"{result.model.name}: {fixed(mean, 1)}"
        axes.set(xlabel="severity", title=title)
        axes.set_xticks(range(len(SEVERITIES)), map(str, SEVERITIES))
        axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axes.grid(visible=False)
    for axes in every[len(found) :]:
        axes.set_visible(False)
    assert image is not None
    figure.colorbar(image, ax=list(every), label="accuracy, %", shrink=0.8)
    more = f"; {hidden} models more are not shown" if hidden > 0 else ""
    captioned(figure, f"Accuracy under corruption{more}", describe([found[0][0]]))
    return figure
