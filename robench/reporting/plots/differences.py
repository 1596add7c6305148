"""A comparison as a picture: differences with intervals."""

from __future__ import annotations

from matplotlib.figure import Figure

from robench.metric_catalogue import METRICS
from robench.reporting.compare import Comparison
from robench.reporting.plots.style import captioned, look, new_figure, styled

__all__ = ["difference_plot"]


@styled
def difference_plot(comparison: Comparison) -> Figure | None:
    """Accuracy differences to the baseline in points, with intervals; one row a quantity.

    Filled markers: shown (Holm); hollow ones: not shown.

    Returns:
        None if nothing is defined.
    """
    table = comparison.table
    table = table[~table["quantity"].isin(list(METRICS)) & table["difference"].notna()]
    if table.empty:
        return None
    quantities = list(dict.fromkeys(table["quantity"]))
    models = list(dict.fromkeys(table["model"]))
    step = 0.7 / len(models)
    figure = new_figure(7.6, 1.3 + len(quantities) * (0.22 + 0.16 * len(models)))
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=0.8)
    for number, model in enumerate(models):
        shape = look(number)
        for label, (_, row) in zip(
            [model, *[None] * len(table)], table[table["model"] == model].iterrows(), strict=False
        ):
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
                label=label,
            )
    axes.set_yticks(range(len(quantities)), quantities)
    axes.set_ylim(len(quantities) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(
        f"difference to {comparison.baseline} in points, {comparison.level:.0%} interval\n"
        "filled: shown, hollow: not shown (Holm over models)"
    )
    figure.legend(loc="outside right upper")
    captioned(figure, f"Against {comparison.baseline}", str(comparison.group))
    return figure
