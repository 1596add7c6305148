"""Printing for people and for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import typer

__all__ = ["format_table", "number", "plain", "print_json", "print_table"]


def print_json(content: Any) -> None:
    """Print as JSON on stdout; undefined numbers are null."""
    typer.echo(json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False))


def plain(value: Any) -> Any:
    """Plain data without NaN, infinities and pandas' NA, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item"):  # a NumPy scalar
        return plain(value.item())
    # pandas.NA compares as itself undefined; everything else is written as its text.
    return None if type(value).__name__ == "NAType" else str(value)


def number(value: Any, digits: int = 1) -> str:
    """A number with so many digits; ``–`` where it is undefined."""
    clean = plain(value)
    if clean is None:
        return "–"
    return f"{clean:.{digits}f}" if isinstance(clean, float) else str(clean)


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns, two spaces apart; columns of numbers to the right."""
    body = [[str(cell) for cell in row] for row in rows]
    table = [list(header), *body]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    right = [bool(body) and all(_is_number(row[column]) for row in body) for column in _up(header)]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print :func:`format_table` on stdout."""
    typer.echo(format_table(header, rows))


def _up(header: Sequence[str]) -> range:
    return range(len(header))


def _is_number(cell: str) -> bool:
    first = cell.split(" ")[0]
    return first in ("", "–") or first.replace(",", "").replace(".", "").lstrip("+-").isdigit()
