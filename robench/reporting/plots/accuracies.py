"""Accuracies as bars and points: of every model under every attack, and against a baseline."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from robench.formatting import fixed
from robench.metric_catalogue import METRICS
from robench.reporting.compare import Comparison
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import style
from robench.statistics import Interval


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
    """Horizontal bars with 95 % intervals: one block a model, one bar an attack; None without
    results."""
    if not results:
        return None
    attacks = _weakest_first(results)
    series = ["clean", *attacks, *(["worst case"] if len(attacks) > 1 else [])]
    thickness = 0.8 / len(series)
    # Bars of a fixed height in inches, however many there are.
    height = 1.3 + len(results) * (0.14 * len(series) + 0.12)
    figure = style.new_figure(8.5, height)
    axes = figure.add_subplot()
    for number, name in enumerate(series):
        shape, offset = style.look(number), (number + 0.5) * thickness - 0.4
        found = {row + offset: _accuracy(result, name) for row, result in enumerate(results)}
        bars = {y: interval for y, interval in found.items() if interval is not None}
        axes.barh(
            list(bars),
            [interval.estimate for interval in bars.values()],
            height=thickness,
            color=shape.colour,
            hatch=shape.hatch,
            edgecolor="black",
            linewidth=0.5,
            label=name,
        )
        for y, interval in bars.items():
            axes.plot([interval.low, interval.high], [y, y], color="black", linewidth=1)
            axes.annotate(
                fixed(interval.estimate, 1),
                (interval.high, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
    style.rows_axis(axes, [result.model.name for result in results])
    style.percent_axis(axes, "x", "accuracy in % with 95 % interval")
    axes.set_xlim(0, 108)
    figure.legend(loc="outside right upper")
    style.captioned(figure, "Accuracy by attack", style.describe(results))
    return figure


def _accuracy(result: ModelResult, name: str) -> Interval | None:
    if name == "clean":
        return result.clean_acc
    if name == "worst case" and name not in result.attacks:
        return result.robust_acc
    return result.attack_acc(name) if name in result.attacks else None


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
    figure = style.new_figure(7.6, 1.3 + len(quantities) * (0.22 + 0.16 * len(models)))
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=0.8)
    for number, model in enumerate(models):
        shape = style.look(number)
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
                markerfacecolor=shape.colour if shown else "white",
                linestyle="none",
                label=None if place else model,
            )
    style.rows_axis(axes, quantities)
    axes.set_xlabel(
        f"difference to {comparison.baseline} in points, {comparison.level:.0%} interval\n"
        "filled: shown, hollow: not shown (Holm over models)"
    )
    figure.legend(loc="outside right upper")
    style.captioned(figure, f"Against {comparison.baseline}", str(comparison.group))
    return figure
