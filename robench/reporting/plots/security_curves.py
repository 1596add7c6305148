"""Accuracy and attention deviation against the attack's radius."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.reporting.model_results import ModelResult
from robench.reporting.plots.style import Look, captioned, look, new_figure, percent_axis, styled
from robench.statistics import Interval

__all__ = ["security_curves"]


@styled
def security_curves(results: Sequence[ModelResult], attack: str) -> Figure | None:
    """Robust accuracy (left axis, full) and attention deviation (right, dashed) against ε.

    Args:
        results: of one data set and norm, at several radii; the clean accuracy is ε = 0.
        attack: its column name; models at radii without it are left out there.

    Returns:
        None unless some model has two radii.
    """
    curves: dict[str, list[ModelResult]] = {}
    for result in results:
        if attack in result.attacks:
            curves.setdefault(result.model.name, []).append(result)
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return None
    order = sorted(curves, key=lambda name: -_mean_accuracy(curves[name], attack))
    figure = new_figure(7.4, 4.4)
    axes = figure.add_subplot()
    right = axes.twinx()
    deviates = [
        _curve(axes, right, look(number), name, curves[name], attack)
        for number, name in enumerate(order)
    ]
    first = next(iter(curves.values()))[0]
    norm = {"Linf": "L∞"}.get(first.threat_model.norm, first.threat_model.norm)
    percent_axis(axes, "y", "accuracy in % (full lines, 95 % bands)")
    axes.set_xlabel(f"ε ({norm}, pixels in [0, 1])")
    axes.set_xlim(left=0)
    if any(deviates):
        right.set(ylim=(-0.02, 1.02), ylabel="attention deviation (dashed lines)")
        right.spines["right"].set_visible(True)
        right.grid(visible=False)
    else:
        right.set_axis_off()
    figure.legend(loc="outside right upper")
    captioned(
        figure,
        f"Security curves under {attack}",
        f"{first.dataset.name} ({first.dataset.split}), {norm}, n = {first.n}",
    )
    return figure


def _curve(
    axes: Axes, right: Axes, shape: Look, name: str, results: Sequence[ModelResult], attack: str
) -> bool:
    """One model's accuracies, and on the right its deviations; whether there are any."""
    points = sorted(results, key=lambda result: result.threat_model.eps)
    radii = [result.threat_model.radius for result in points]
    accuracy: list[Interval] = [result.attack_acc(attack) for result in points]
    axes.plot(
        [0.0, *radii],
        [points[0].clean_acc.estimate, *(a.estimate for a in accuracy)],
        color=shape.colour,
        marker=shape.marker,
        markeredgecolor="black",
        markeredgewidth=0.5,
        label=name,
    )
    axes.fill_between(
        radii,
        [a.low for a in accuracy],
        [a.high for a in accuracy],
        color=shape.colour,
        alpha=0.2,
        linewidth=0,
    )
    found = [r.attacks[attack].record.metrics.get("attention_deviation") for r in points]
    pairs = [
        (radius, summary.mean)
        for radius, summary in zip(radii, found, strict=True)
        if summary is not None and summary.mean is not None
    ]
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


def _mean_accuracy(points: Sequence[ModelResult], attack: str) -> float:
    return sum(result.attack_acc(attack).estimate for result in points) / len(points)
