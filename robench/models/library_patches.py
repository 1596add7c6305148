"""What users have put into the libraries' own places: torch's functions, names that Python knows."""

from __future__ import annotations

import builtins
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robench.models.library_code import is_foreign, is_installed

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def is_plain(value: object) -> bool:
    """Whether it is a number, a text or an array, all that there is to it."""
    return type(value) in _PLAIN or isinstance(value, (Tensor, np.ndarray))


def put_in_torch() -> list[types.FunctionType]:
    """Functions of others in places from which torch's layers call them."""
    held = [*vars(nn.functional).values(), *vars(torch).values()]
    return [f for f in held if isinstance(f, types.FunctionType) and is_foreign(f)]


def put_in_builtins() -> dict[str, Any]:
    """What every module sees under a name without importing it, and Python did not put there."""
    return {
        name: value
        for name, value in vars(builtins).items()
        if not name.startswith("_") and (_is_users(value) or is_plain(value))
    }


def _is_users(value: object) -> bool:
    if not isinstance(value, types.FunctionType):
        return False
    return is_foreign(value) and not is_installed(value.__code__)
