"""The leaderboard as people and machines see it, in a terminal or as JSON.

Takes tables and loads no pandas, so that one that was made before is shown at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from robench.formatting import format_table, is_undefined, number, plain

if TYPE_CHECKING:
    import pandas as pd

_HIDDEN = ("worst_class_robust_acc", "robust_acc", "best_known_acc", "verified_acc", "clean_acc")
"""Accuracies that are no attack's, or are shown elsewhere."""


@dataclass(frozen=True)
class Board:
    """A leaderboard, with what was attacked with targets and what was corrupted.

    Attributes:
        text: for a terminal.
        content: plain data: the rows of ``leaderboard``, and of ``targeted`` and ``corruptions`` where
            there are any, by column, accuracies as the CSV has them.
    """

    text: str
    content: dict[str, Any]


def shown_board(
    frame: pd.DataFrame,
    targeted: pd.DataFrame | None = None,
    corrupted: pd.DataFrame | None = None,
    *,
    radii: bool = False,
) -> Board:
    """A leaderboard's tables as they are shown, those of several ``radii`` in one."""
    from robench.reporting.leaderboard import as_written  # pandas

    content = {"leaderboard": rows_of(as_written(frame))}
    parts = [board_text(frame, radii=radii)]
    if targeted is not None and len(targeted):
        content["targeted"] = rows_of(targeted)
        parts = [*(parts if len(frame) else []), targeted_text(targeted)]
    if corrupted is not None and len(corrupted):
        content["corruptions"] = rows_of(corrupted)
        parts = [*(parts if len(content) > 2 or len(frame) else []), corruptions_text(corrupted)]
    return Board("\n\n".join(parts), plain(content))


def board_text(frame: pd.DataFrame, *, radii: bool = False) -> str:
    """The leaderboard for a terminal: a table for each group of comparable rows, or, of several
    ``radii``, for each of groups that differ by theirs alone."""
    if frame.empty:
        return "No results."
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(frame):
        threat = row["norm"] if radii else f"{row['norm']} eps {row['eps']}"
        title = (
            f"{row['dataset']} {threat}, n = {number(row['n'])}, "
            f"seed {number(row['seed'])} (data {str(row['data_sha256'])[:8]})"
        )
        groups.setdefault(title, []).append(row)
    tables = ((title, _group_table(rows, radii)) for title, rows in groups.items())
    return "\n\n".join(f"{title}\n{table}" for title, table in tables)


def targeted_text(frame: pd.DataFrame) -> str:
    """How often targets were reached, for a terminal: a table for each group of comparable rows."""
    header = ["model", "attack", "reached", "attacked", "success %", "95 % interval", "pairs %"]
    header += ["targeted robust %", "clean %", "validity"]

    def cells(row: dict[str, Any]) -> list[str]:
        return [
            *(str(row[name]) for name in ("model", "attack", "reached", "attacked")),
            number(row["targeted_success"]),
            f"{number(row['targeted_success_low'])} – {number(row['targeted_success_high'])}",
            *(number(row[n]) for n in ("pair_success", "targeted_robust_acc", "clean_acc")),
            str(row["validity"]),
        ]

    return _by_group(frame, header, cells)


def corruptions_text(frame: pd.DataFrame) -> str:
    """Accuracy on corrupted samples, for a terminal: a table for each group of comparable rows."""
    severities = [name for name in frame.columns if name.startswith("severity_")]
    mce = ["mce"] if "mce" in frame else []
    header = ["model", "corruptions_acc", "95 % interval", *(["mCE"] if mce else [])]
    header += ["clean_acc", *(name.removesuffix("_acc") for name in severities), "validity"]

    def cells(row: dict[str, Any]) -> list[str]:
        return [
            str(row["model"]),
            number(row["corruptions_acc"]),
            f"{number(row['corruptions_acc_low'])} – {number(row['corruptions_acc_high'])}",
            *(number(row[name]) for name in (*mce, "clean_acc", *severities)),
            str(row["validity"]),
        ]

    return _by_group(frame, header, cells)


def _by_group(
    frame: pd.DataFrame, header: list[str], cells: Callable[[dict[str, Any]], list[str]]
) -> str:
    tables = (
        f"{title}\n{format_table(header, [cells(row) for row in rows_of(block)])}"
        for title, block in frame.groupby("group", sort=False)
    )
    return "\n\n".join(tables)


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows, by column."""
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def _group_table(rows: list[dict[str, Any]], radii: bool) -> str:
    attacks = [
        name
        for name in rows[0]
        if name.endswith("_acc")
        and name not in _HIDDEN
        and any(number(row[name]) != "–" for row in rows)
    ]
    header = ["eps"] * radii + ["rank", "model", "robust_acc", "95 % interval", "best known"]
    verified = any(number(row.get("verified_acc")) != "–" for row in rows)
    header += [*(["verified"] if verified else []), "clean_acc"]
    header += [name.removesuffix("_acc").replace("_", "-") for name in attacks]
    audited = any(number(row.get("audit_missed")) != "–" for row in rows)
    validated = any(not is_undefined(row.get("validated")) for row in rows)
    header += [*(["audit missed ≤"] if audited else []), "worst class"]
    header += [*(["validated"] if validated else []), "validity"]
    body = []
    for row in rows:
        interval = f"{number(row['robust_acc_low'])} – {number(row['robust_acc_high'])}"
        worst = number(row["worst_class_robust_acc"])
        worst += "" if is_undefined(row["worst_class"]) else f" ({row['worst_class']})"
        body.append(
            [
                *[str(row["eps"])] * radii,
                number(row["rank"]),
                str(row["model"]),
                number(row["robust_acc"]),
                interval,
                number(row["best_known_acc"]),
                *([number(row["verified_acc"])] if verified else []),
                number(row["clean_acc"]),
                *(number(row[name]) for name in attacks),
                *([number(row["audit_missed"])] if audited else []),
                worst,
                *([_text(row["validated"])] if validated else []),
                str(row["validity"]),
            ]
        )
    return format_table(header, body)


def _text(value: Any) -> str:
    return "–" if is_undefined(value) else str(value)
