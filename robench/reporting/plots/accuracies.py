"""Accuracies as points: of every model under every attack, and against a baseline."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robench.formatting import fixed
from robench.metric_catalogue import METRICS
from robench.reporting.compare import Comparison, compare_models, distinct_names
from robench.reporting.drawing import best_first
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import palette, style
from robench.reporting.plots.cells import draw_cells
from robench.statistics import Interval

_BELOW = (0.2, 0.33)
"""Where a row's single attacks stand, by turns, so that close ones do not hide each other"""


def _weakest_first(results: Sequence[ModelResult]) -> list[str]:
    """Attacks by the mean accuracy that they leave; those that few models met go last. Inputs that
    somebody brought for one model are no attack on the others, nor in the worst case."""
    names = {name for result in results for name in result.protocol}

    def order(name: str) -> tuple[int, float, str]:
        left = [i.estimate for r in results if (i := _accuracy(r, name)) is not None]
        return -len(left), -sum(left) / len(left), name

    return sorted(names, key=order)


@style.styled
def accuracy_by_attack(results: Sequence[ModelResult]) -> Figure | None:
    """A row a model, best first: the worst case and the clean accuracy with 95 % intervals and a bar
    for what the attacks take, single attacks as marks below it, the worst case in figures beside it.
    None without results."""
    if not results:
        return None
    rows, attacks = best_first(results), _weakest_first(results)
    figure = style.new_figure(6.8, 1.4 + 0.36 * len(rows))
    axes = figure.add_subplot()
    robust = [result.robust_acc for result in rows]
    clean = [result.clean_acc for result in rows]
    for y, (low, high) in enumerate(zip(robust, clean, strict=True)):
        axes.plot([low.estimate, high.estimate], [y, y], color=palette.LINE, linewidth=3, zorder=1)
    worst = "worst case" if len(attacks) > 1 else attacks[0]
    _points(axes, robust, worst, filled=True)
    _points(axes, clean, "clean", filled=False)
    for number, attack in enumerate(attacks if len(attacks) > 1 else ()):
        left = [_accuracy(result, attack) for result in rows]
        shape = palette.look(number + 1)
        axes.plot(
            [np.nan if share is None else share.estimate for share in left],
            [row + _BELOW[number % len(_BELOW)] for row in range(len(rows))],
            color=shape.colour,
            marker=shape.marker,
            markersize=4.5,
            markeredgecolor=palette.WHITE,
            markeredgewidth=0.4,
            linestyle="none",
            label=attack,
            clip_on=False,
        )
    beside = axes.get_yaxis_transform()
    for row, share in enumerate(robust):
        text = f"{fixed(share.estimate, 1)} ({fixed(share.low, 1)}–{fixed(share.high, 1)})"
        axes.text(1.02, row, text, transform=beside, va="center", fontsize=style.relative(0.83))
    axes.text(
        1.02,
        -0.6,
        f"{worst} (95 %)",
        transform=beside,
        fontsize=style.relative(0.78),
        color=palette.REMARK,
    )
    style.rows_axis(axes, distinct_names(rows))
    style.percent_axis(axes, "x", "accuracy in % (lines: 95 % intervals)")
    figure.legend(loc="outside lower center", ncols=min(len(attacks) + 2, 4))
    style.captioned(figure, "Accuracy by attack", style.describe(rows))
    return figure


def _points(axes: Axes, shares: Sequence[Interval], name: str, *, filled: bool) -> None:
    """A dot with its interval in each row."""
    face = palette.BLUE if filled else palette.WHITE
    for row, share in enumerate(shares):
        axes.plot([share.low, share.high], [row, row], color=palette.BLUE, linewidth=1.4, zorder=2)
    axes.plot(
        [share.estimate for share in shares],
        range(len(shares)),
        color=palette.BLUE,
        marker="o",
        markersize=6,
        markerfacecolor=face,
        markeredgecolor=palette.BLUE,
        linestyle="none",
        label=name,
        zorder=3,
        clip_on=False,
    )


@style.styled
def accuracy_heat_map(results: Sequence[ModelResult]) -> Figure | None:
    """Models, best first, by attacks, weakest first, between the clean accuracy and the worst case;
    in percent, a dash where a model did not meet an attack. None without results."""
    if not results:
        return None
    rows, attacks = best_first(results), _weakest_first(results)
    columns = ["clean", *attacks, *(["worst case"] if len(attacks) > 1 else [])]
    found = [[_accuracy(result, name) for name in columns] for result in rows]
    shares = np.array([[np.nan if c is None else c.estimate for c in row] for row in found])
    texts = [["–" if c is None else fixed(c.estimate, 1) for c in row] for row in found]
    figure = style.new_figure(1.4 + 0.55 * len(columns), 1.5 + 0.27 * len(rows))
    axes = figure.add_subplot()
    draw_cells(axes, shares, texts, distinct_names(rows), columns, fontsize=0.83, aspect="auto")
    # What is no attack stands apart.
    for place in (0.5, *([len(columns) - 1.5] if len(attacks) > 1 else [])):
        axes.axvline(place, color=palette.WHITE, linewidth=5)
    style.captioned(figure, "Accuracy in %", style.describe(rows))
    return figure


def _accuracy(result: ModelResult, name: str) -> Interval | None:
    if name == "clean":
        return result.clean_acc
    if name == "worst case" and name not in result.attacks:
        return result.robust_acc
    return result.attack_acc(name) if name in result.attacks else None


def differences(results: Sequence[ModelResult]) -> Figure | None:
    """:func:`difference_plot` of models against the first of them.

    Raises:
        UsageError: there is one alone, or another has no attack in common with it.
    """
    return difference_plot(compare_models(results[0], results[1:])) if results else None


@style.styled
def difference_plot(comparison: Comparison) -> Figure | None:
    """Accuracy differences to the baseline in points, with intervals; one row a quantity.

    Filled markers: shown (Holm); hollow ones: not shown. None if nothing is defined.
    """
    table = comparison.table
    table = table[~table["quantity"].isin(list(METRICS)) & table["difference"].notna()]
    if table.empty:
        return None
    quantities = list(dict.fromkeys(table["quantity"]))
    models = list(dict.fromkeys(table["model"]))
    step = 0.7 / len(models)
    figure = style.new_figure(6.8, 1.3 + len(quantities) * (0.22 + 0.16 * len(models)))
    axes = figure.add_subplot()
    axes.axvline(0, color=palette.BLACK, linewidth=0.8)
    for number, model in enumerate(models):
        shape = palette.look(number)
        for place, row in enumerate(table[table["model"] == model].to_dict("records")):
            shown = row["verdict"] in ("better", "worse")
            y = quantities.index(row["quantity"]) - 0.35 + (number + 0.5) * step
            # A bootstrap interval need not hold its estimate, so it is a line of its own.
            axes.plot([row["low"], row["high"]], [y, y], color=shape.colour, marker="|")
            axes.plot(
                [row["difference"]],
                [y],
                color=shape.colour,
                marker=shape.marker,
                markersize=6,
                markerfacecolor=shape.colour if shown else palette.WHITE,
                linestyle="none",
                label=None if place else model,
            )
    style.rows_axis(axes, quantities)
    axes.set_xlabel(
        f"difference to {comparison.baseline} in points, {comparison.level:.0%} interval\n"
        "filled: shown, hollow: not shown (Holm over models)"
    )
    style.legend(figure)
    style.captioned(figure, f"Against {comparison.baseline}", str(comparison.group))
    return figure
