"""Arrays as text that the page's script unpacks: the smallest type that holds them, in base64."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

_WHOLE = ("u1", "i1", "i2", "i4")
_LARGEST_HALF = 60_000.0
_SMALLEST_HALF = 1e-4


def packed(values: npt.ArrayLike) -> dict[str, str]:
    """Numbers of any shape as ``type`` and ``data``, little-endian.

    Whole numbers stay as they are. Fractions have three digits (float16) where that holds them,
    else seven (float32); NaN stays NaN.

    Raises:
        OverflowError: a whole number does not fit in 32 bits.
    """
    array = np.asarray(values)
    if array.dtype.kind in "biu":
        kind = next((k for k in _WHOLE if _holds(np.dtype(k), array)), None)
        if kind is None:
            raise OverflowError(f"{array.min()} to {array.max()} do not fit in 32 bits")
    else:
        sizes = np.abs(array[np.isfinite(array) & (array != 0)])
        small = not sizes.size or (sizes.max() < _LARGEST_HALF and sizes.min() > _SMALLEST_HALF)
        kind = "f2" if small else "f4"
    data = np.ascontiguousarray(array.astype(f"<{kind}")).tobytes()
    return {"type": kind, "data": base64.b64encode(data).decode()}


def size_of(content: Any) -> int:
    """Characters that packed arrays and pictures in plain data take, all else left out."""
    if isinstance(content, dict):
        return sum(map(size_of, content.values()))
    if isinstance(content, list):
        return sum(map(size_of, content))
    return len(content) if isinstance(content, str) else 0


def _holds(kind: np.dtype[Any], array: npt.NDArray[Any]) -> bool:
    if not array.size:
        return True
    limits = np.iinfo(kind)
    return bool(limits.min <= array.min() and array.max() <= limits.max)
