"""What a command prints, as text or as JSON. Loads nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from robench.formatting import plain
from robench.reporting.board import Board


def print_result(content: Any, text: str, *, as_json: bool) -> None:
    """Print what a command has to say on stdout: ``content`` as JSON, whose undefined numbers are
    null, or else ``text``."""
    if as_json:
        text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    typer.echo(text)


def show_board(board: Board, files: Sequence[Path], *, as_json: bool) -> None:
    """Print a leaderboard, and which files were written; as JSON with all of its columns."""
    content = {**board.content, "files": [str(path) for path in files]}
    print_result(content, board.text, as_json=as_json)
    if files and not as_json:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        typer.echo(f"\nWritten: {files[0]}{more}", err=True)
