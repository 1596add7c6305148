"""How every figure looks, and how it becomes a file.

Figures are drawn through matplotlib's objects, never its global state, so that a program that draws
its own figures is not disturbed. Files have no date and no random ids: the same figure gives the same
bytes with the same matplotlib.
"""

import contextlib
import functools
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from robench.errors import UsageError
from robench.files import atomic_write
from robench.registry import near_misses, unknown_name
from robench.reporting.model_results import ModelResult
from robench.reporting.plots import palette
from robench.threat_models import ThreatModel

P = ParamSpec("P")
R = TypeVar("R")

_FONT, _FONT_SIZE = "DejaVu Sans", 9.0
_DPI = 150
_NARROW = 4.5

FORMATS = ("png", "svg", "pdf")
"""What a figure can be written as, which its file's ending says"""

_LIMITS = {"width": (1, 40), "height": (1, 40), "font_size": (3, 40), "dpi": (50, 1200)}

_RC: dict[Any, Any] = {
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": palette.LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "svg.hashsalt": "robench",
    "svg.fonttype": "path",
    # Journals refuse the bitmap-like fonts that are matplotlib's default.
    "pdf.fonttype": 42,
    # Names are text, whatever is in them: no formula between dollars, nothing for TeX.
    "text.parse_math": False,
    "text.usetex": False,
}


@dataclass(frozen=True)
class Style:
    """What a user may ask of a figure's looks.

    Attributes:
        width, height: in inches; None: as much as the figure needs. A column of a paper is 3.3 wide, a
            page 6.8.
        font: an installed font, or ``serif``, ``sans-serif`` or ``monospace``; what it has no letter
            for is taken from the default one.
        font_size: of the axes' labels in points; titles and remarks follow.
        dpi: pixels an inch, of PNG; None: 150.
        title: whether the figure says above what it is; a paper has its caption.

    Raises:
        UsageError: a number out of range.
        UnknownNameError: the font is not installed; near misses are listed.
    """

    width: float | None = None
    height: float | None = None
    font: str = _FONT
    font_size: float = _FONT_SIZE
    dpi: int | None = None
    title: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise UsageError(f"{name} is {value}, it must be from {low} to {high}")
        if self.font != _FONT:
            _check_font(self.font)


_DEFAULT = Style()
_STYLE: ContextVar[Style] = ContextVar("robench's style of figures", default=_DEFAULT)


@contextlib.contextmanager
def using(style: Style) -> Iterator[None]:
    """Figures that are drawn meanwhile have this style."""
    token = _STYLE.set(style)
    try:
        yield
    finally:
        _STYLE.reset(token)


def _check_font(name: str) -> None:
    # Reads the list of installed fonts.
    from matplotlib import font_manager

    general = ["serif", "sans-serif", "monospace"]
    known = {*general, *(entry.name for entry in font_manager.fontManager.ttflist)}
    if name not in known:
        # A machine has hundreds: where none is near, those that all have.
        raise unknown_name("font", name, near_misses(name, sorted(known)) or general)


def _settings() -> dict[Any, Any]:
    """What has to change for matplotlib's defaults with ours: nobody's configuration changes a figure."""
    style = _STYLE.get()
    fonts = {
        "font.family": list(dict.fromkeys((style.font, _FONT))),
        "font.size": style.font_size,
    }
    wanted = {**_defaults(), **_RC, **fonts}
    # Matplotlib checks each value that it is given, which takes longer than to compare it.
    return {name: value for name, value in wanted.items() if matplotlib.rcParams[name] != value}


@functools.cache
def _defaults() -> dict[str, Any]:
    kept = ("backend", "backend_fallback", "interactive", "toolbar")
    return {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in kept}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under robench's settings, leaving matplotlib's own untouched."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(_settings()):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which keeps its parts from overlapping.

    The size is for texts of 9 points and grows with them; what the user asked for goes before.
    """
    style = _STYLE.get()
    larger = style.font_size / _FONT_SIZE
    figsize = (style.width or width * larger, style.height or height * larger)
    figure = Figure(figsize=figsize, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def relative(share: float) -> float:
    """A font size in points, as a share of that of the axes' labels."""
    return share * _STYLE.get().font_size


def norm_text(threat_model: ThreatModel) -> str:
    """``L∞``, ``L2`` or ``L1``."""
    return threat_model.norm.replace("inf", "∞")


def threat_text(threat_model: ThreatModel) -> str:
    """``L∞, ε = 8/255``."""
    if threat_model.corrupted is not None:
        return f"{threat_model.corrupted} corruptions"
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
    if _STYLE.get().title:
        figure.suptitle(f"{what}\n{conditions}", x=0.01, ha="left", fontsize=relative(1.1))


def legend(figure: Figure) -> None:
    """The series, beside the axes; in a paper's column below them."""
    if figure.get_figwidth() < _NARROW:
        figure.legend(loc="outside lower center", ncols=3)
    else:
        figure.legend(loc="outside right upper")


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
    for suffix in (".png", ".svg"):
        path = stem.with_name(stem.name + suffix)
        write(figure, path)
        # Laid out once: both files have the same places, and that took a third of the time.
        figure.set_layout_engine("none")
        written.append(path)
    return written[0], written[1]


def write(figure: Figure, path: Path) -> None:
    """Write a figure, atomically, in the format that the file's ending says.

    Raises:
        UnknownNameError: the ending is none of :data:`FORMATS`.
        StoreError: it cannot be written.
    """
    kind = check_ending(path)
    undated: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}}
    undated["pdf"] = {"CreationDate": None}
    buffer = io.BytesIO()
    with matplotlib.rc_context(_settings()), warnings.catch_warnings():
        # Of a name that the font lacks characters of, or that leaves no room.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format=kind, dpi=_STYLE.get().dpi or _DPI, metadata=undated[kind])
    atomic_write(path, buffer.getvalue())


def check_ending(path: Path) -> str:
    """The format that a file's ending says.

    Raises:
        UnknownNameError: it is none of :data:`FORMATS`.
    """
    kind = path.suffix[1:].lower()
    if kind not in FORMATS:
        raise unknown_name("format of a figure", kind or path.name, list(FORMATS))
    return kind
