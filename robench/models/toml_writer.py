"""Plain data → TOML 1.0 text. The standard library reads TOML but does not write it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["dumps"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dumps(content: Mapping[str, Any]) -> str:
    """Write nested mappings of strings, numbers, booleans, sequences and mappings.

    Mappings become tables, sequences of nothing but mappings arrays of tables; deeper inside
    sequences they are inline. Scalars come before tables, otherwise the order is kept. TOML has
    no null: a key whose value is None is left out.

    Raises:
        TypeError: a value of any other type, or None inside a sequence.
    """
    return "\n\n".join(_tables(content, ())) + "\n"


def _tables(content: Mapping[str, Any], path: tuple[str, ...], header: str = "") -> list[str]:
    tables = {k: v for k, v in content.items() if isinstance(v, Mapping) or _is_rows(v)}
    scalars = {k: v for k, v in content.items() if v is not None and k not in tables}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in scalars.items()]
    # A table that only holds tables exists through them; a row of an array does not.
    if header and (lines or not tables or header.startswith("[[")):
        lines.insert(0, header)
    parts = ["\n".join(lines)] if lines else []
    for key, value in tables.items():
        inner = (*path, key)
        name = ".".join(map(_key, inner))
        if isinstance(value, Mapping):
            parts += _tables(value, inner, f"[{name}]")
        else:
            for row in value:
                parts += _tables(row, inner, f"[[{name}]]")
    return parts


def _is_rows(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and len(value) > 0
        and all(isinstance(row, Mapping) for row in value)
    )


def _key(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"TOML keys are strings, got {key!r}")
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but TOML also wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        pairs = [f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None]
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return "[" + ", ".join(map(_value, value)) + "]"
    raise TypeError(f"cannot write {type(value).__name__} as TOML: {value!r}")
