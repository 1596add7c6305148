"""How searches went on, step by step."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from robench.reporting.model_results import ModelResult
from robench.reporting.plots import palette, style
from robench.reporting.traces import StageTrace, stage_traces
from robench.results.traces import read_trace

_FLOOR = 1e-12
"""Where gradients that are zero are drawn"""
_PANELS = {
    "best_margin": "smallest margin so far",
    "gradient_norm": f"gradient's L2 norm (zero at {_FLOOR:g})",
}


@style.styled
def search_traces(results: Sequence[ModelResult]) -> Figure | None:
    """Of one model: medians over the searches with the band of the quartiles, a line for each stage of each attack
    whose trace was kept: the smallest margin so far, and the norm of the gradient. None without any."""
    (result,) = results
    shown: list[tuple[str, StageTrace]] = []
    for name, stored in result.attacks.items():
        if stored.trace_path is not None:
            for trace in stage_traces(partial(read_trace, stored.trace_path)):
                label = name if trace.stage == name else f"{name}: {trace.stage}"
                shown.append((label, trace))
    if not shown:
        return None
    figure = style.new_figure(6.8, 3.2)
    for column, (quantity, label) in enumerate(_PANELS.items(), 1):
        axes = figure.add_subplot(1, 2, column)
        for number, (name, trace) in enumerate(shown):
            _draw(axes, palette.look(number), trace, quantity, name if column == 1 else None)
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if quantity == "best_margin":
            axes.axhline(0, color=palette.BLACK, linewidth=0.8)
        elif any(quantity in trace.spreads for _, trace in shown):
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis)
    style.legend(figure)
    what = f"Searches on {result.model.name}: medians, bands from quartile to quartile"
    style.captioned(figure, what, style.describe([result]))
    return figure


def _plain_ticks(axis: Axis) -> None:
    """Powers of ten as numbers: text between dollar signs is text here, and so are exponents."""
    axis.set_major_locator(LogLocator(numticks=8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw(
    axes: Axes, look: palette.Look, trace: StageTrace, quantity: str, label: str | None
) -> None:
    spread = trace.spreads.get(quantity)
    if spread is None:
        axes.plot([], [], color=look.colour, label=label)
        return
    low, median, high = (spread.low, spread.median, spread.high)
    if quantity == "gradient_norm":
        low, median, high = (part.clip(min=_FLOOR) for part in (low, median, high))
    axes.plot(trace.steps, median, color=look.colour, label=label)
    axes.fill_between(trace.steps, low, high, color=look.colour, alpha=0.2, linewidth=0)
