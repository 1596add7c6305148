"""Robust accuracy against ε: curves of minimum-norm attacks, and points of attacks at one radius."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.reporting.compare import distinct_names
from robench.reporting.curves import WORST_CASE, RobustCurve, curves_of
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import palette, style
from robench.statistics import Interval


def robust_against_eps(results: Sequence[ModelResult], attack: str | None = None) -> Figure | None:
    """Robust accuracy against ε under an attack, or in the worst case over all.

    Args:
        results: of one data set, norm and seed, at one radius or several.
        attack: a minimum-norm one gives curves, :func:`robust_curves`, any other lines through its
            radii, :func:`security_curves`. None: curves, if every model has one, else lines.

    Returns:
        None where there is no curve, and no model has two radii.
    """
    curves = [c for c in curves_of(results) if attack in (None, c.attack)]
    models = {result.model.fingerprint for result in results}
    if curves and (attack is not None or {c.result.model.fingerprint for c in curves} == models):
        return robust_curves(curves)
    return security_curves(results, attack)


@style.styled
def robust_curves(curves: Sequence[RobustCurve]) -> Figure:
    """A falling line a curve with its 95 % band, of one norm, best first at half of the way down.

    Filled markers are the worst case of a radius's attacks, hollow ones single attacks.
    """
    figure = style.new_figure(6.8, 4)
    axes = figure.add_subplot()
    end = max(
        [float(size) for c in curves for size in c.steps[0]]
        + [point.eps for curve in curves for point in curve.points]
    )
    end = 1.03 * end or 1.0
    for number, curve in enumerate(curves):
        _draw(axes, palette.look(number), curve, end, named=len({c.attack for c in curves}) > 1)
    first = curves[0].result
    norm = style.norm_text(first.threat_model)
    style.percent_axis(axes, "y", "robust accuracy in % (95 % bands)")
    axes.set_xlabel(f"ε ({norm}, pixels in [0, 1])")
    axes.set_xlim(0, end)
    style.legend(figure)
    data = f"{first.dataset.name} ({first.dataset.split}), {norm}, n = {first.n}"
    attacks = " / ".join(sorted({curve.attack for curve in curves}))
    points = any(curve.points for curve in curves)
    marks = "; filled: worst case of a radius's attacks, hollow: one attack" if points else ""
    style.captioned(figure, f"Robust accuracy against ε under {attacks}", f"{data}{marks}")
    return figure


def _draw(axes: Axes, shape: palette.Look, curve: RobustCurve, end: float, *, named: bool) -> None:
    thresholds, shares = curve.steps
    # The last step goes on to the axis's end.
    at = [*thresholds.tolist(), end]
    shares = [*shares, shares[-1]]
    axes.step(
        at,
        [share.estimate for share in shares],
        where="post",
        color=shape.colour,
        label=f"{curve.model} ({curve.attack})" if named else curve.model,
    )
    low, high = [share.low for share in shares], [share.high for share in shares]
    axes.fill_between(at, low, high, step="post", color=shape.colour, alpha=0.2, linewidth=0)
    for filled in (False, True):
        points = [p for p in curve.points if (p.source == WORST_CASE) == filled]
        axes.plot(
            [point.eps for point in points],
            [point.robust_acc.estimate for point in points],
            color=shape.colour,
            marker=shape.marker,
            markersize=6 if filled else 4,
            markerfacecolor=shape.colour if filled else palette.WHITE,
            markeredgecolor=palette.BLACK if filled else shape.colour,
            markeredgewidth=0.6,
            linestyle="none",
            zorder=3,
        )


@style.styled
def security_curves(results: Sequence[ModelResult], attack: str | None = None) -> Figure | None:
    """Accuracy under an attack, or in the worst case, through the radii, from the clean accuracy at
    ε = 0; below it the attention deviation under the attack, where it was measured.

    The results are of one data set and norm. Models at radii without the attack are left out there;
    one with a single radius is a point without a line. None unless some model has two radii.
    """
    curves: dict[str, list[ModelResult]] = {}
    for result in sorted(results, key=lambda item: item.threat_model.eps):
        if attack is None or attack in result.attacks:
            curves.setdefault(result.model.fingerprint, []).append(result)
    if not any(len(points) > 1 for points in curves.values()):
        return None
    order = sorted(curves.values(), key=lambda rs: -fmean(_left(r, attack).estimate for r in rs))
    names = distinct_names([points[0] for points in order])
    deviations = [_deviations(points, attack) for points in order]
    panels = 2 if any(deviations) else 1
    figure = style.new_figure(6.8, 2.4 + 1.6 * panels)
    axes, *below = figure.subplots(
        panels, 1, sharex=True, squeeze=False, height_ratios=(2, 1)[:panels]
    )[:, 0]
    for number, (name, points) in enumerate(zip(names, order, strict=True)):
        shape = palette.look(number)
        _line(axes, shape, name, points, [_left(result, attack) for result in points])
        if deviations[number]:
            below[0].plot(*zip(*deviations[number], strict=True), **_mark(shape))
    first = order[0][0]
    norm = style.norm_text(first.threat_model)
    style.percent_axis(axes, "y", "accuracy in %\n(95 % bands)")
    (below or [axes])[-1].set_xlabel(f"ε ({norm}, pixels in [0, 1])")
    axes.set_xlim(left=0)
    if below:
        below[0].set(ylim=(-0.02, 1.02), ylabel="attention\ndeviation")
    style.legend(figure)
    conditions = f"{first.dataset.name} ({first.dataset.split}), {norm}, n = {first.n}"
    under = f"under {attack}" if attack is not None else "in the worst case"
    style.captioned(figure, f"Robust accuracy against ε {under}", conditions)
    return figure


def _left(result: ModelResult, attack: str | None) -> Interval:
    return result.robust_acc if attack is None else result.attack_acc(attack)


def _deviations(results: Sequence[ModelResult], attack: str | None) -> list[tuple[float, float]]:
    """Radius and mean deviation, where it is known. In the worst case there is no such thing."""
    if attack is None:
        return []
    pairs = [(r.threat_model.radius, r.metric_mean("attention_deviation", attack)) for r in results]
    return [pair for pair in pairs if not math.isnan(pair[1])]


def _mark(shape: palette.Look) -> dict[str, Any]:
    return {
        "color": shape.colour,
        "marker": shape.marker,
        "markersize": 5,
        "markeredgecolor": palette.WHITE,
        "markeredgewidth": 0.4,
    }


def _line(
    axes: Axes,
    shape: palette.Look,
    name: str,
    points: Sequence[ModelResult],
    accuracy: Sequence[Interval],
) -> None:
    """One model's accuracies with their band; of one radius alone the point."""
    radii = [result.threat_model.radius for result in points]
    clean = points[0].clean_acc
    known = list(zip(radii, accuracy, strict=True))
    if len(points) > 1:
        known = [(0.0, clean), *known]
    at = [eps for eps, _ in known]
    axes.plot(at, [share.estimate for _, share in known], label=name, **_mark(shape))
    low, high = [share.low for _, share in known], [share.high for _, share in known]
    axes.fill_between(at, low, high, color=shape.colour, alpha=0.2, linewidth=0)
