"""Robust accuracy against something else: clean accuracy, or a metric's mean."""

import math
from collections.abc import Collection, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.metric_catalogue import METRICS
from robench.reporting.compare import distinct_names
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import palette, style
from robench.statistics import Interval, mean_interval


@style.styled
def clean_against_robust(results: Sequence[ModelResult]) -> Figure | None:
    """Clean against worst-case robust accuracy with both 95 % intervals, and the frontier: filled are
    models that no other has as much of the one and more of the other than, by the estimates. None
    without results."""
    if not results:
        return None
    clean = [result.clean_acc for result in results]
    best = frontier(
        [(c.estimate, r.robust_acc.estimate) for c, r in zip(clean, results, strict=True)]
    )
    figure, axes = _robust_against(
        "Clean against robust accuracy", results, clean, hollow=set(range(len(results))) - set(best)
    )
    # Clean accuracies lie close together: the axis shows their range, not 0 to 100.
    floor = max(0, 10 * math.floor((min(interval.low for interval in clean) - 2) / 10))
    corners = [(clean[place].estimate, results[place].robust_acc.estimate) for place in best]
    axes.step(
        [floor, *(x for x, _ in corners), corners[-1][0]],
        [corners[0][1], *(y for _, y in corners), 0],
        where="pre",
        color=palette.GREY,
        linewidth=1,
        zorder=1,
        label="frontier (filled)",
    )
    axes.set(xlim=(floor, 100 + (100 - floor) / 50), xlabel="clean accuracy in %")
    style.legend(figure)
    return figure


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other is at least as large as in both coordinates and larger in
    one, by the first coordinate."""
    kept = [
        place
        for place, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    return sorted(kept, key=lambda place: (points[place][0], place))


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
    axes.set_xlabel(f"mean {item.label.lower()} under {under}\n({item.unit}{best})")
    if item.low == 0 and item.high == 1:
        axes.set_xlim(-0.02, 1.02)
    style.legend(figure)
    return figure


def _robust_against(
    title: str,
    results: Sequence[ModelResult],
    values: Sequence[Interval],
    hollow: Collection[int] = (),
) -> tuple[Figure, Axes]:
    """Worst-case robust accuracy against ``values``, a point a model; undefined ones have none."""
    figure = style.new_figure(6.8, 4)
    axes = figure.add_subplot()
    for number, (result, x, name) in enumerate(
        zip(results, values, distinct_names(results), strict=True)
    ):
        if not x.defined:
            continue
        shape, y = palette.look(number), result.robust_acc
        axes.errorbar(
            [x.estimate],
            [y.estimate],
            # Rounding may put a limit a hair on the wrong side of 0 or 100.
            xerr=[[max(0.0, x.estimate - x.low)], [max(0.0, x.high - x.estimate)]],
            yerr=[[max(0.0, y.estimate - y.low)], [max(0.0, y.high - y.estimate)]],
            color=shape.colour,
            elinewidth=1.2,
            linestyle="none",
        )
        axes.plot(
            [x.estimate],
            [y.estimate],
            color=shape.colour,
            marker=shape.marker,
            markersize=7,
            markerfacecolor=palette.WHITE if number in hollow else shape.colour,
            markeredgewidth=1.2,
            linestyle="none",
            label=name,
            clip_on=False,
            zorder=3,
        )
    style.percent_axis(axes, "y", "worst-case robust accuracy in %")
    style.captioned(figure, title, style.describe(results))
    return figure, axes
