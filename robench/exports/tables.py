"""Tables: the leaderboard, the samples, and the grid that papers and pages show of it.

A grid has a block for each group of comparable results. In each column the **best** value of a block
is marked, as it is shown: where several models show the same, all of them, and where there is one
value alone, none. What the leaderboard does
not rank (an errored sample, a missing attack) or what validation calls unreliable is never best, and a
remark says why.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from robench.errors import UsageError
from robench.exports.material import Material
from robench.formatting import fixed, is_undefined
from robench.metric_catalogue import METRICS
from robench.registry import unknown_name
from robench.reporting.export import csv_bytes, samples_frame
from robench.reporting.leaderboard import attack_column, leaderboard_csv
from robench.statistics import wilson
from robench.text import markdown

_LABELS = {
    "model": "Model",
    "defense": "Defense",
    "architecture": "Architecture",
    "parameters": "Parameters",
    "clean_acc": "Clean",
    "robust_acc": "Robust",
    "best_known_acc": "Best known",
    "verified_acc": "Verified",
    "worst_class_robust_acc": "Worst class",
    "targeted_success": "Reached",
}
_GROUP = ("dataset", "norm", "eps", "n", "seed", "data_sha256")
"""Columns of the leaderboard that say what is comparable."""


@dataclass(frozen=True)
class Cell:
    """One value as it is shown.

    Attributes:
        text: plain; empty where it is undefined.
        best: whether no other value of its block and column is better.
        low, high: the ends of its interval as they are shown, where one was asked for and exists.
    """

    text: str
    best: bool = False
    low: str = ""
    high: str = ""


@dataclass(frozen=True)
class Grid:
    """A table as people read it.

    Attributes:
        header: a title for each column.
        numeric: whether a column holds numbers.
        blocks: of each group its name, and the rows.
        doubted: by block and row, which of the remarks tells why the row may flatter, from 1; 0: none.
        remarks: each once.
    """

    header: list[str]
    numeric: list[bool]
    blocks: list[tuple[str, list[list[Cell]]]]
    doubted: list[list[int]]
    remarks: list[str]


def csv(material: Material) -> str:
    """The leaderboard with the digits of ``leaderboard.csv``, or all samples with all of theirs."""
    frame = _frame(material)
    plain = material.choices.samples or material.wanted.goal in ("targeted", "corrupted")
    return (csv_bytes(frame) if plain else leaderboard_csv(frame)).decode()


def parquet(material: Material) -> bytes:
    """What :func:`csv` has, with types and all digits, for pandas and its like."""
    stream = io.BytesIO()
    _frame(material).to_parquet(stream, index=False)
    return stream.getvalue()


def markdown_table(material: Material) -> str:
    """A Markdown table for each group; the best in bold."""
    grid = make_grid(material)
    lines: list[str] = []
    for (group, rows), numbers in zip(grid.blocks, grid.doubted, strict=True):
        lines += [f"{markdown(group)}:", ""] if group else []
        lines.append(f"| {' | '.join(map(markdown, grid.header))} |")
        lines.append(f"|{'|'.join('---:' if n else '---' for n in grid.numeric)}|")
        for row, remark in zip(rows, numbers, strict=True):
            cells = [_markdown_cell(cell) for cell in row]
            cells[0] += f" ({remark})" if remark else ""
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += [f"({place}) {markdown(said)}" for place, said in enumerate(grid.remarks, 1)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = markdown(cell.text) or "–"
    text = f"**{text}**" if cell.best else text
    return f"{text} ({cell.low} – {cell.high})" if cell.low else text


def make_grid(material: Material) -> Grid:
    """The chosen columns of the leaderboard, rounded; without a choice model, clean accuracy, all
    attacks and robust accuracy.

    Raises:
        UnknownNameError: there is no such column; near misses are listed.
        UsageError: there is no result.
    """
    frame = material.table
    attacks = {attack_column(name): name for r in material.results for name in r.attacks}
    if material.wanted.goal == "targeted":
        default = ["model", "attack", "clean_acc", "targeted_success", "targeted_robust_acc"]
        group = ["group"]
    elif material.wanted.goal == "corrupted":
        severities = [name for name in frame.columns if name.startswith("severity_")]
        default, group = ["model", "clean_acc", *severities, "corruptions_acc"], ["group"]
    else:
        shown = [name for name in frame.columns if name in attacks]
        default = ["model", "clean_acc", *shown, "robust_acc"]
        group = list(_GROUP)
    columns = _known(frame, material.choices.columns) or default
    of_samples = {"clean_acc", "robust_acc", *attacks}
    digits = 1 if material.choices.digits is None else material.choices.digits
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in columns]
    blocks, doubted, remarks = [], [], []
    for _, block in frame.groupby(group, sort=False, dropna=False):
        rows = block.to_dict("records")
        doubts = [_doubt(row) for row in rows]
        cells = {
            name: _column(rows, doubts, name, digits, material.choices.intervals, of_samples)
            for name in columns
        }
        numbers = []
        for doubt in doubts:
            if doubt and doubt not in remarks:
                remarks.append(doubt)
            numbers.append(remarks.index(doubt) + 1 if doubt else 0)
        blocks.append(
            (_block_name(rows[0]), [list(row) for row in zip(*cells.values(), strict=True)])
        )
        doubted.append(numbers)
    labels = _LABELS | attacks
    header = [labels.get(name) or _label(name) for name in columns]
    return Grid(header, numeric, blocks, doubted, remarks)


def _frame(material: Material) -> pd.DataFrame:
    frame = samples_frame(material.records) if material.choices.samples else material.table
    chosen = _known(frame, material.choices.columns)
    return frame[chosen] if chosen else frame


def _known(frame: pd.DataFrame, chosen: Sequence[str]) -> list[str]:
    """The chosen columns, each of which has to be there, once."""
    for place, name in enumerate(chosen):
        if name not in frame.columns:
            raise unknown_name("column", name, [str(known) for known in frame.columns])
        if name in chosen[:place]:
            raise UsageError(f"the column {name!r} is chosen twice")
    return list(chosen)


def _column(
    rows: Sequence[dict[Any, Any]],
    doubts: Sequence[str],
    name: str,
    digits: int,
    intervals: bool,
    of_samples: set[str],
) -> list[Cell]:
    places = digits if name not in METRICS else digits + 2
    texts = [_shown(row[name], places) for row in rows]
    direction = _direction(name)
    fit = [
        float(t) for t, doubt in zip(texts, doubts, strict=True) if direction and t and not doubt
    ]
    best = None if len(fit) < 2 else max(fit) if direction == "higher" else min(fit)
    cells = []
    for row, text, doubt in zip(rows, texts, doubts, strict=True):
        low = high = ""
        if intervals and text and name in of_samples:
            whole = int(row["n"])
            limits = wilson(round(row[name] * whole / 100), whole).scaled(100)
            low, high = fixed(limits.low, places), fixed(limits.high, places)
        is_best = best is not None and bool(text) and not doubt and float(text) == best
        cells.append(Cell(text, is_best, low, high))
    return cells


def _shown(value: Any, digits: int) -> str:
    if is_undefined(value):
        return ""
    return fixed(value + 0.0, digits) if isinstance(value, float) else str(value)


def _direction(name: str) -> str:
    """Which way a column is better; empty: it does not judge."""
    base = name.removesuffix("_broken").removesuffix("_survived")
    if base in METRICS:
        direction = METRICS[base].direction
        return direction if direction in ("higher", "lower") else ""
    if name in ("audit_missed", "targeted_success"):
        return "lower"
    return "higher" if name.endswith("_acc") else ""


def _doubt(row: dict[Any, Any]) -> str:
    """Why a row's numbers may flatter it; empty: nothing is known against them."""
    said = [str(row["validity"])] if is_undefined(row.get("rank", 0)) else []
    if row.get("validated") == "unreliable":
        said.append(f"called unreliable: {row['unreliable']}")
    return "; ".join(said)


def _block_name(row: dict[Any, Any]) -> str:
    if "group" in row:
        return str(row["group"])
    return f"{row['dataset']}, {row['norm']}, eps {row['eps']}, n = {row['n']}, seed {row['seed']}"


def _label(name: str) -> str:
    return METRICS[name].label if name in METRICS else name.replace("_", " ")
