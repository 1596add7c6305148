"""Accuracy of every model, clean and under every attack."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

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

__all__ = ["accuracy_by_attack"]


def _weakest_first(results: Sequence[ModelResult]) -> list[str]:
    """Attacks by the mean accuracy that they leave; those that few models met go last."""
    names = {name for result in results for name in result.attacks}

    def order(name: str) -> tuple[int, float, str]:
        left = [i.estimate for r in results if (i := _accuracy(r, name)) is not None]
        return -len(left), -sum(left) / len(left), name

    return sorted(names, key=order)


@styled
def accuracy_by_attack(results: Sequence[ModelResult]) -> Figure | None:
    """Horizontal bars with 95 % intervals: one block a model, one bar an attack.

    Returns:
        None without results.
    """
    if not results:
        return None
    attacks = _weakest_first(results)
    series = ["clean", *attacks, *(["worst case"] if len(attacks) > 1 else [])]
    thickness = 0.8 / len(series)
    # Bars of a fixed height in inches, however many there are.
    height = 1.3 + len(results) * (0.14 * len(series) + 0.12)
    figure = new_figure(8.5, height)
    axes = figure.add_subplot()
    for number, name in enumerate(series):
        shape = look(number)
        labelled = False
        for row, result in enumerate(results):
            interval = _accuracy(result, name)
            if interval is None:
                continue
            y = row - 0.4 + (number + 0.5) * thickness
            axes.barh(
                y,
                interval.estimate,
                height=thickness,
                color=shape.colour,
                hatch=shape.hatch,
                edgecolor="black",
                linewidth=0.5,
                label=None if labelled else name,
            )
            labelled = True
            axes.plot([interval.low, interval.high], [y, y], color="black", linewidth=1)
            axes.annotate(
                f"{interval.estimate:.1f}",
                (interval.high, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    axes.set_yticks(range(len(results)), [result.model.name for result in results])
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    percent_axis(axes, "x", "accuracy in % with 95 % interval")
    axes.set_xlim(0, 108)
    figure.legend(loc="outside right upper")
    captioned(figure, "Accuracy by attack", describe(results))
    return figure


def _accuracy(result: ModelResult, name: str) -> Interval | None:
    if name == "clean":
        return result.clean_acc
    if name == "worst case" and name not in result.attacks:
        return result.robust_acc
    return result.attack_acc(name) if name in result.attacks else None
