"""How every figure looks, and how it becomes a file.

Colours are Okabe and Ito's, which people with any colour vision tell apart; hatches and markers
say the same once more, for greyscale. Figures are drawn through matplotlib's objects, never its
global state, so that a program that draws its own figures is not disturbed. Files have no date
and no random ids: the same figure gives the same bytes with the same matplotlib.
"""

import functools
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robench.files import atomic_write
from robench.reporting.model_results import ModelResult
from robench.threat_models import ThreatModel

P = ParamSpec("P")
R = TypeVar("R")

_COLOURS = (
    "#0072B2",  # blue
    "#E69F00",  # orange
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#56B4E9",  # sky blue
    "#D55E00",  # vermilion
    "#F0E442",  # yellow
    "#999999",  # grey, in place of black, which edges and text have
)
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "++", "oo", "--")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")

_DPI = 150
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "robench",
    "svg.fonttype": "path",
    # Names are text, whatever is in them: no formula between dollars, nothing for TeX.
    "text.parse_math": False,
    "text.usetex": False,
}


def _settings() -> dict[Any, Any]:
    """Matplotlib's defaults with ours: nobody's configuration changes a figure."""
    kept = ("backend", "backend_fallback", "interactive", "toolbar")
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in kept}
    return {**defaults, **_RC}


@dataclass(frozen=True)
class Look:
    """What one series looks like everywhere."""

    colour: str
    hatch: str
    marker: str


def look(index: int) -> Look:
    """The look of the ``index``-th series. Colours repeat after 8, but not with their marker."""
    turn = index // len(_COLOURS)
    return Look(
        _COLOURS[index % len(_COLOURS)],
        _HATCHES[(index + turn) % len(_HATCHES)],
        _MARKERS[index % len(_MARKERS)],
    )


BROKEN = Look("#D55E00", "///", "X")
SURVIVED = Look("#0072B2", "", "o")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under robench's settings, leaving matplotlib's own untouched."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_settings()):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that keeps its parts from overlapping."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def norm_text(threat_model: ThreatModel) -> str:
    """``L∞``, ``L2`` or ``L1``."""
    return threat_model.norm.replace("inf", "∞")


def threat_text(threat_model: ThreatModel) -> str:
    """``L∞, ε = 8/255``."""
    return f"{norm_text(threat_model)}, ε = {threat_model.written}"


def describe(results: Sequence[ModelResult]) -> str:
    """Data, threat model and n of results of one group, for a title's second line."""
    first = results[0]
    data = f"{first.dataset.name} ({first.dataset.split})"
    return f"{data}, {threat_text(first.threat_model)}, n = {first.n}"


def attention_attacks(results: Sequence[ModelResult]) -> str:
    """The attacks that the models' metrics are given for."""
    return " / ".join(sorted({result.attention_attack or "" for result in results}))


def captioned(figure: Figure, what: str, conditions: str) -> None:
    """Title the figure with what it shows, and on which data."""
    figure.suptitle(f"{what}\n{conditions}", x=0.01, ha="left", fontsize=10)


def percent_axis(axes: Axes, which: str, label: str) -> None:
    """A fixed axis from 0 to 100 %."""
    # The ends are a little outside, so that markers at 0 and 100 are whole.
    axes.set(
        **{f"{which}lim": (-2, 102), f"{which}label": label, f"{which}ticks": range(0, 101, 20)}
    )


def rows_axis(axes: Axes, names: Sequence[str]) -> None:
    """An axis of names, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def save(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write ``stem.png`` (150 dpi) and ``stem.svg``, atomically.

    Raises:
        StoreError: they cannot be written.
    """
    written = []
    with matplotlib.rc_context(_settings()), warnings.catch_warnings():
        # Of a name that the font lacks characters of, or that leaves no room.
        warnings.simplefilter("ignore", UserWarning)
        for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix[1:], dpi=_DPI, metadata=metadata)
            # Laid out once: both files have the same places, and that took a third of the time.
            figure.set_layout_engine("none")
            path = stem.with_name(stem.name + suffix)
            atomic_write(path, buffer.getvalue())
            written.append(path)
    return written[0], written[1]
