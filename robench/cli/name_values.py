"""``NAME=VALUE`` on the command line → plain data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from robench.errors import UsageError

__all__ = ["parse_name_values"]

_PYTHON = {"True": True, "False": False, "None": None}


def parse_name_values(texts: Sequence[str], option: str) -> dict[str, Any]:
    """``["lr=0.1", "milestones=0.5,0.75"]`` → ``{"lr": 0.1, "milestones": [0.5, 0.75]}``.

    A value is a literal of JSON (or Python's True, False, None), several of them with commas
    between, or else text.

    Raises:
        UsageError: no ``=``, no name, or a name twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not (equals and name):
            raise UsageError(f"{text!r} is not a setting", where=option, hint="Write NAME=VALUE")
        if name in found:
            raise UsageError(f"{name!r} is given twice", where=option)
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    if "," in text:
        return [_value(part) for part in text.split(",")]
    return _PYTHON.get(text, text)
