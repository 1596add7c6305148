"""Which classes an attack turns into which."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from robench.formatting import fixed
from robench.records import Outcome
from robench.reporting.model_results import ModelResult, class_name
from robench.reporting.plots.cells import draw_cells
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
def confusion_under_attack(results: Sequence[ModelResult], attack: str) -> Figure | None:
    """The confusion matrix of one model in percent of each true class, numbers in the cells; None if
    no sample was classified correctly to begin with."""
    (result,) = results
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
    size = 2.2 + 0.36 * len(present)
    figure = new_figure(size + 1.0, size + 0.3)
    axes = figure.add_subplot()
    texts = [[fixed(share, 0) if share >= 0.5 else "" for share in row] for row in shares.tolist()]
    image = draw_cells(axes, shares, texts, names, names)
    axes.set(xlabel="prediction under attack", ylabel="true class")
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.8)
    captioned(figure, f"{result.model.name}: confusion under {attack}", describe([result]))
    return figure
