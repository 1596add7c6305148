"""One point a model: clean against robust accuracy, and robust accuracy against attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.metric_catalogue import metric
from robench.reporting.model_results import ModelResult
from robench.reporting.plots.style import (
    attention_attacks,
    captioned,
    describe,
    look,
    new_figure,
    percent_axis,
    styled,
)
from robench.statistics import Interval, mean_interval

__all__ = ["clean_against_robust", "robust_against_metric"]


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
def robust_against_metric(results: Sequence[ModelResult], name: str) -> Figure | None:
    """Robust accuracy against the mean of a metric, with 95 % intervals of both.

    Args:
        results: models of one group.
        name: a per-sample metric of the catalogue.

    Returns:
        None if no model has the metric.

    Raises:
        UnknownNameError: there is no such metric.
    """
    item = metric(name)
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
    attacks = attention_attacks([result for _, result, _ in shown])
    best = {"lower": ", lower is better", "higher": ", higher is better"}.get(item.direction, "")
    axes.set_xlabel(f"mean {item.label.lower()} under {attacks} ({item.unit}{best})")
    if item.low == 0 and item.high == 1:
        axes.set_xlim(-0.02, 1.02)
    percent_axis(axes, "y", "worst-case robust accuracy in %")
    figure.legend(loc="outside right upper")
    captioned(figure, f"Robust accuracy against {item.label.lower()}", describe(results))
    return figure


def _point(axes: Axes, number: int, name: str, x: Interval, y: Interval) -> None:
    shape = look(number)
    axes.errorbar(
        [x.estimate],
        [y.estimate],
        # Rounding may put a limit a hair on the wrong side of 0 or 100.
        xerr=[[max(0.0, x.estimate - x.low)], [max(0.0, x.high - x.estimate)]],
        yerr=[[max(0.0, y.estimate - y.low)], [max(0.0, y.high - y.estimate)]],
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
    # The values are bounded and many: the normal approximation of their mean is good.
    interval = mean_interval(result.column(result.attention_attack, name))
    return interval if interval.defined else None
