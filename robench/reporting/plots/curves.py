"""Robust accuracy against ε: curves of minimum-norm attacks, and points of attacks at one radius."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.reporting.curves import WORST_CASE, RobustCurve, curves_of
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import style


def minimum_norm_curves(results: Sequence[ModelResult]) -> Figure | None:
    """:func:`robust_curves` of the minimum-norm records of one group, with its other attacks as
    points; None without such a record."""
    curves = curves_of(results)
    return robust_curves(curves) if curves else None


@style.styled
def robust_curves(curves: Sequence[RobustCurve]) -> Figure:
    """A falling line a curve with its 95 % band, of one norm, best first at half of the way down.

    Filled markers are the worst case of a radius's attacks, hollow ones single attacks.
    """
    figure = style.new_figure(7.4, 4.4)
    axes = figure.add_subplot()
    end = max(
        [float(size) for c in curves for size in c.steps[0]]
        + [point.eps for curve in curves for point in curve.points]
    )
    end = 1.03 * end or 1.0
    for number, curve in enumerate(curves):
        _draw(axes, style.look(number), curve, end, named=len({c.attack for c in curves}) > 1)
    first = curves[0].result
    norm = style.norm_text(first.threat_model)
    style.percent_axis(axes, "y", "robust accuracy in % (95 % bands)")
    axes.set_xlabel(f"ε ({norm}, pixels in [0, 1])")
    axes.set_xlim(0, end)
    figure.legend(loc="outside right upper")
    data = f"{first.dataset.name} ({first.dataset.split}), {norm}, n = {first.n}"
    attacks = " / ".join(sorted({curve.attack for curve in curves}))
    points = any(curve.points for curve in curves)
    marks = "; filled: worst case of a radius's attacks, hollow: one attack" if points else ""
    style.captioned(figure, f"Robust accuracy against ε under {attacks}", f"{data}{marks}")
    return figure


def _draw(axes: Axes, shape: style.Look, curve: RobustCurve, end: float, *, named: bool) -> None:
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
            markerfacecolor=shape.colour if filled else "white",
            markeredgecolor="black" if filled else shape.colour,
            markeredgewidth=0.6,
            linestyle="none",
            zorder=3,
        )
