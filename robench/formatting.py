"""How numbers that may be undefined are shown: in tables, pages and JSON. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["is_undefined", "number", "p_value", "plain"]


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


def number(value: Any, digits: int = 1) -> str:
    """A number with so many digits; ``–`` where it is undefined."""
    clean = plain(value)
    if clean is None:
        return "–"
    return f"{clean:.{digits}f}" if isinstance(clean, float) else str(clean)


def p_value(p: float) -> str:
    """A p-value with three digits; rounded to 0 it would claim too much."""
    return "< 0.001" if p < 0.001 else number(float(p), 3)
