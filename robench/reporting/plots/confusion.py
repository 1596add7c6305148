"""Which classes an attack turns into which."""

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from robench.formatting import fixed
from robench.records import Outcome
from robench.reporting.model_results import ModelResult, class_name
from robench.reporting.plots.style import captioned, describe, new_figure, styled


def confusion(result: ModelResult, attack: str) -> npt.NDArray[np.int64]:
    """Counts (true class, prediction under attack) of the correctly classified samples.

    Survivors are on the diagonal. Errored samples, and broken ones whose prediction is not
    known, are left out.
    """
    classes = result.dataset.num_classes
    counts = np.zeros((classes, classes), dtype=np.int64)
    survived = result.outcome_is(attack, Outcome.SURVIVED)
    predicted = np.where(survived, result.labels, result.column(attack, "adv_prediction"))
    known = (survived | result.outcome_is(attack, Outcome.BROKEN)) & ~np.isnan(predicted)
    np.add.at(counts, (result.labels[known], predicted[known].astype(np.int64)), 1)
    return counts


@styled
def confusion_under_attack(result: ModelResult, attack: str) -> Figure | None:
    """The confusion matrix in percent of each true class, numbers in the cells; None if no sample
    was classified correctly to begin with."""
    counts = confusion(result, attack)
    if not counts.sum():
        return None
    # Many classes: the ones that are in the data, by how often they are broken, at most 20.
    present = np.flatnonzero(counts.sum(axis=1) + counts.sum(axis=0))
    if len(present) > 20:
        broken = counts.sum(axis=1) - counts.diagonal()
        present = np.sort(present[np.argsort(-broken[present], kind="stable")[:20]])
    totals = counts.sum(axis=1)[present]
    with np.errstate(invalid="ignore"):
        shares = 100 * counts[np.ix_(present, present)] / totals[:, None]
    names = [class_name(result.dataset, int(label)) for label in present]
    size = 2.2 + 0.42 * len(present)
    figure = new_figure(size + 1.0, size + 0.3)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100)
    for row, column in np.ndindex(shares.shape):
        share = shares[row, column]
        if share >= 0.5:
            place, colour = (column, row), "white" if share < 55 else "black"
            axes.text(*place, fixed(share, 0), ha="center", va="center", fontsize=7, color=colour)
    turned = 90 if max(map(len, names)) > 3 else 0
    axes.set_xticks(range(len(names)), names, rotation=turned)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="prediction under attack", ylabel="true class")
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    captioned(figure, f"{result.model.name}: confusion under {attack}", describe([result]))
    return figure
