"""Samples that only one of two models resists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from robench.records import EvaluationRecord
from robench.reporting.model_results import class_name
from robench.reporting.plots.sample_panel import show_image
from robench.reporting.plots.style import captioned, new_figure, styled, threat_text

__all__ = ["resisted_by_one"]

Images = npt.NDArray[np.floating[Any]]
Classes = npt.NDArray[np.integer[Any]]


@styled
def resisted_by_one(
    models: tuple[str, str],
    record: EvaluationRecord,
    sample_ids: Sequence[str],
    labels: Classes,
    clean: Images,
    adversarial: tuple[Images, Images],
    predictions: tuple[Classes, Classes],
) -> Figure | None:
    """One row a sample: the clean image, and what each model's attack made of it.

    Args:
        models: the two names.
        record: of either model; names the data, the threat model and the attack.
        sample_ids: the k samples, as :class:`robench.reporting.compare.Comparison` lists them.
        labels: true classes (k,).
        clean: images (k, H, W, C) in [0, 1].
        adversarial: each model's adversarial images, likewise.
        predictions: each model's classes under attack, (k,); −1 where unknown.

    Returns:
        None without samples.
    """
    k = len(sample_ids)
    if not k:
        return None
    figure = new_figure(5.2, 0.9 + 1.5 * k)
    grid = figure.subplots(k, 3, squeeze=False)
    for row in range(k):
        show_image(grid[row, 0], clean[row])
        true = class_name(record.dataset, int(labels[row]))
        grid[row, 0].set_ylabel(f"{sample_ids[row][-18:]}\ntrue: {true}", fontsize=7)
        for column, (images, classes) in enumerate(zip(adversarial, predictions, strict=True), 1):
            show_image(grid[row, column], images[row])
            predicted = int(classes[row])
            if predicted >= 0:
                wrong = predicted != int(labels[row])
                grid[row, column].set_xlabel(
                    f"{'✗' if wrong else '✓'} {class_name(record.dataset, predicted)}",
                    fontsize=8,
                    color="#B00000" if wrong else "black",
                    labelpad=2,
                )
    titles = ("clean", *(f"under attack: {name}" for name in models))
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8, loc="center", wrap=True)
    captioned(
        figure,
        f"Resisted by one of {models[0]} and {models[1]} ({record.attack.name})",
        f"{record.dataset.name} ({record.dataset.split}), {threat_text(record.threat_model)}, "
        f"{k} of n = {record.n}",
    )
    return figure
