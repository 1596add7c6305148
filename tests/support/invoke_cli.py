"""Runs the command line in this process, as ``robench …`` would."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from typing import Any

import pytest

from robench.cli.main import main


@dataclass(frozen=True)
class Invoked:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def invoke(*arguments: object) -> Invoked:
    """Run ``robench ARGUMENTS…``."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit_info,
    ):
        main([str(argument) for argument in arguments])
    code = exit_info.value.code
    return Invoked(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


__all__ = ["Invoked", "invoke"]
