"""How numbers that may be undefined are shown: in tables, pages and JSON. Imports no torch."""

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any

from robench.text import visible

_ROUNDING = Context(prec=400, rounding=ROUND_HALF_UP)
"""Room for the largest float"""

_WIDEST = 100_000
"""Of a table: wide enough that Rich never wraps a cell."""


def is_undefined(value: Any) -> bool:
    """Whether it is None, NaN or pandas' NA."""
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float):
        return math.isnan(value)
    # Known by its name: pandas takes long to import.
    return value is None or type(value).__name__ == "NAType"


def plain(value: Any) -> Any:
    """Plain data without NaN, infinities and pandas' NA, which JSON does not have: they become
    None. What is no plain data becomes its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):  # a NumPy scalar
        return plain(value.item())
    return None if is_undefined(value) else str(value)


def fixed(value: float, digits: int, sign: str = "") -> str:
    """A number with so many digits after the point, ``sign`` ``"+"`` before positive ones too.

    The one rule of rounding for whatever is shown: what floating point added beyond twelve digits is
    taken off, and halves go away from zero, as by hand. So 100 · (1539 / 2000) and 1539 / 20 are both
    77.0.
    """
    if not math.isfinite(value):
        return f"{value:{sign}.{digits}f}"
    exact = Decimal(f"{value:.12g}")
    return f"{exact.quantize(Decimal(1).scaleb(-digits), context=_ROUNDING):{sign}f}"


def rounded(value: float, digits: int) -> float:
    """The number that :func:`fixed` shows."""
    return float(fixed(value, digits))


def number(value: Any, digits: int = 1) -> str:
    """A number with so many digits; ``–`` where it is undefined."""
    clean = plain(value)
    if clean is None:
        return "–"
    return fixed(clean, digits) if isinstance(clean, float) else str(clean)


def signed_interval(estimate: float, low: float, high: float, digits: int) -> str:
    """``+1.0 (-0.5 … +2.5)``, with so many digits; ``–`` where it is undefined."""
    if is_undefined(estimate):
        return "–"
    return (
        f"{fixed(estimate, digits, '+')} ({fixed(low, digits, '+')} … {fixed(high, digits, '+')})"
    )


def p_value(p: float) -> str:
    """A p-value with three digits; rounded to 0 it would claim too much."""
    return "< 0.001" if p < 0.001 else number(float(p), 3)


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns, two spaces apart; columns of numbers to the right.

    The same text whatever it is printed on: nothing is wrapped, coloured or cut.
    """
    # Rich takes a moment to load, which numbers alone do without.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    body = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for column, title in enumerate(header):
        right = bool(body) and all(_is_number(row[column]) for row in body)
        table.add_column(Text(visible(title)), justify="right" if right else "left", no_wrap=True)
    for row in body:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console = Console(width=_WIDEST, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _is_number(cell: str) -> bool:
    first = cell.split(" ")[0]
    return first in ("", "–") or first.replace(",", "").replace(".", "").lstrip("+-").isdigit()
