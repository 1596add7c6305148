"""Robust accuracy against something else: clean accuracy, a metric's mean, the attack's radius."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.metric_catalogue import METRICS
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import style
from robench.statistics import Interval, mean_interval


@style.styled
def clean_against_robust(results: Sequence[ModelResult]) -> Figure | None:
    """Clean against worst-case robust accuracy with both 95 % intervals; None without results."""
    if not results:
        return None
    clean = [result.clean_acc for result in results]
    figure, axes = _robust_against("Clean against robust accuracy", results, clean)
    line: dict[str, Any] = {"color": "#999999", "linewidth": 0.8, "linestyle": "--", "zorder": 1}
    axes.plot([0, 100], [0, 100], **line, label="robust = clean")
    # Clean accuracies lie close together: the axis shows their range, not 0 to 100.
    floor = max(0, 10 * math.floor((min(interval.low for interval in clean) - 2) / 10))
    axes.set(xlim=(floor, 100 + (100 - floor) / 50), xlabel="clean accuracy in %")
    figure.legend(loc="outside right upper")
    return figure


@style.styled
def robust_against_metric(results: Sequence[ModelResult], name: str) -> Figure | None:
    """Robust accuracy against the mean of a metric of the catalogue, with 95 % intervals of both,
    of models of one group; None if no model has the metric.

    Raises:
        UnknownNameError: there is no such metric.
    """
    item = METRICS[name]
    # The values are bounded and many: the normal approximation of their mean is good.
    means = [mean_interval(result.reported(name)) for result in results]
    shown = [result for result, mean in zip(results, means, strict=True) if mean.defined]
    if not shown:
        return None
    title = f"Robust accuracy against {item.label.lower()}"
    figure, axes = _robust_against(title, results, means)
    best = {"lower": ", lower is better", "higher": ", higher is better"}.get(item.direction, "")
    under = style.attention_attacks(shown)
    axes.set_xlabel(f"mean {item.label.lower()} under {under} ({item.unit}{best})")
    if item.low == 0 and item.high == 1:
        axes.set_xlim(-0.02, 1.02)
    figure.legend(loc="outside right upper")
    return figure


def _robust_against(
    title: str, results: Sequence[ModelResult], values: Sequence[Interval]
) -> tuple[Figure, Axes]:
    """Worst-case robust accuracy against ``values``, a point a model; undefined ones have none."""
    figure = style.new_figure(6.8, 4.6)
    axes = figure.add_subplot()
    for number, (result, x) in enumerate(zip(results, values, strict=True)):
        if not x.defined:
            continue
        shape, y = style.look(number), result.robust_acc
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
            label=result.model.name,
        )
    style.percent_axis(axes, "y", "worst-case robust accuracy in %")
    style.captioned(figure, title, style.describe(results))
    return figure, axes


@style.styled
def security_curves(results: Sequence[ModelResult], attack: str) -> Figure | None:
    """Robust accuracy (left axis, full) and attention deviation (right, dashed) against ε.

    The results are of one data set and norm, at several radii; the clean accuracy is ε = 0. Models
    at radii without the attack are left out there. None unless some model has two radii.
    """
    curves: dict[str, list[ModelResult]] = {}
    for result in results:
        if attack in result.attacks:
            curves.setdefault(result.model.name, []).append(result)
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    order = sorted(
        curves, key=lambda name: -fmean(r.attack_acc(attack).estimate for r in curves[name])
    )
    figure = style.new_figure(7.4, 4.4)
    axes = figure.add_subplot()
    right = axes.twinx()
    deviates = [
        _curve(axes, right, style.look(number), name, curves[name], attack)
        for number, name in enumerate(order)
    ]
    first = next(iter(curves.values()))[0]
    norm = style.norm_text(first.threat_model)
    style.percent_axis(axes, "y", "accuracy in % (full lines, 95 % bands)")
    axes.set_xlabel(f"ε ({norm}, pixels in [0, 1])")
    axes.set_xlim(left=0)
    if any(deviates):
        right.set(ylim=(-0.02, 1.02), ylabel="attention deviation (dashed lines)")
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
    else:
        right.set_axis_off()
    figure.legend(loc="outside right upper")
    conditions = f"{first.dataset.name} ({first.dataset.split}), {norm}, n = {first.n}"
    style.captioned(figure, f"Security curves under {attack}", conditions)
    return figure


def _curve(
    axes: Axes,
    right: Axes,
    shape: style.Look,
    name: str,
    results: Sequence[ModelResult],
    attack: str,
) -> bool:
    """One model's accuracies, and on the right its deviations; whether there are any."""
    points = sorted(results, key=lambda result: result.threat_model.eps)
    radii = [result.threat_model.radius for result in points]
    accuracy = [result.attack_acc(attack) for result in points]
    axes.plot(
        [0.0, *radii],
        [points[0].clean_acc.estimate, *(a.estimate for a in accuracy)],
        color=shape.colour,
        marker=shape.marker,
        markeredgecolor="black",
        markeredgewidth=0.5,
        label=name,
    )
    low, high = [a.low for a in accuracy], [a.high for a in accuracy]
    axes.fill_between(radii, low, high, color=shape.colour, alpha=0.2, linewidth=0)
    deviations = [result.metric_mean("attention_deviation", attack) for result in points]
    pairs = [pair for pair in zip(radii, deviations, strict=True) if not math.isnan(pair[1])]
    if pairs:
        right.plot(
            *zip(*pairs, strict=True),
            color=shape.colour,
            marker=shape.marker,
            markersize=4,
            markerfacecolor="white",
            linestyle="--",
            linewidth=1,
        )
    return bool(pairs)
