"""Printing for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from robench.formatting import number, plain

__all__ = ["format_table", "number", "plain", "print_json", "print_table"]


def print_json(content: Any) -> None:
    """Print as JSON on stdout; undefined numbers are null."""
    typer.echo(json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False))


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
