"""One point a model: clean against robust accuracy, and robust accuracy against attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.metric_catalogue import metric
from robench.reporting.model_results import ModelResult
from robench.reporting.plots.style import (
    captioned,
    describe,
    look,
    new_figure,
    percent_axis,
    styled,
)
from robench.statistics import Interval

__all__ = ["clean_against_robust", "robust_against_deviation"]


@styled
def clean_against_robust(results: Sequence[ModelResult]) -> Figure | None:
    """Clean against worst-case robust accuracy with both 95 % intervals; None without results."""
    if not results:
        return None
    figure = new_figure(6.8, 4.6)
    axes = figure.add_subplot()
    axes.plot(
        [0, 100], [0, 100], color="#999999", linewidth=0.8, linestyle="--", label="robust = clean"
    )
    for number, result in enumerate(results):
        _point(axes, number, result.model.name, result.clean_acc, result.robust_acc)
    # Clean accuracies lie close together: the axis shows their range, not 0 to 100.
    low = min(result.clean_acc.low for result in results)
    floor = max(0, 10 * math.floor((low - 2) / 10))
    axes.set(xlim=(floor, 100 + (100 - floor) / 50), xlabel="clean accuracy in %")
    percent_axis(axes, "y", "worst-case robust accuracy in %")
    figure.legend(loc="outside right upper")
    captioned(figure, "Clean against robust accuracy", describe(results))
    return figure


@styled
def robust_against_deviation(results: Sequence[ModelResult]) -> Figure | None:
    """Robust accuracy against mean attention deviation, with 95 % intervals.

    Returns:
        None if no model has the metric.
    """
    name = "attention_deviation"
    shown = []
    for number, result in enumerate(results):
        interval = _mean_interval(result, name)
        if interval is not None:
            shown.append((number, result, interval))
    if not shown:
        return None
    figure = new_figure(6.8, 4.6)
    axes = figure.add_subplot()
    for number, result, interval in shown:
        _point(axes, number, result.model.name, interval, result.robust_acc)
    item = metric(name)
    attacks = sorted({result.attention_attack or "" for _, result, _ in shown})
    axes.set(
        xlim=(-0.02, 1.02),
        xlabel=f"mean {item.label.lower()} under {' / '.join(attacks)} (0 same, 1 disjoint)",
    )
    percent_axis(axes, "y", "worst-case robust accuracy in %")
    figure.legend(loc="outside right upper")
    captioned(figure, "Robust accuracy against attention deviation", describe(results))
    return figure


def _point(axes: Axes, number: int, name: str, x: Interval, y: Interval) -> None:
    shape = look(number)
    axes.errorbar(
        [x.estimate],
        [y.estimate],
        xerr=[[x.estimate - x.low], [x.high - x.estimate]],
        yerr=[[y.estimate - y.low], [y.high - y.estimate]],
        color=shape.colour,
        marker=shape.marker,
        markersize=8,
        markeredgecolor="black",
        markeredgewidth=0.6,
        elinewidth=1.2,
        capsize=2,
        linestyle="none",
        label=name,
    )


def _mean_interval(result: ModelResult, name: str) -> Interval | None:
    if result.attention_attack is None:
        return None
    values = result.column(result.attention_attack, name)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return None
    mean = float(values.mean())
    # The values are in [0, 1] and many: the normal approximation of their mean is good.
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
