"""What users have put into the libraries' own places: torch's functions, names that Python knows."""

from __future__ import annotations

import builtins
import functools
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


def put_in_torch() -> list[Any]:
    """Functions, methods and callable objects of others in places from which torch's layers call
    them."""
    # No layer calls torch.compile, which libraries wrap when they are imported.
    held = [*vars(nn.functional).values()]
    held += [value for name, value in vars(torch).items() if name != "compile"]
    return [value for value in held if _is_others(value)]


def _is_others(value: Any) -> bool:
    if isinstance(value, types.FunctionType):
        return is_foreign(value)
    if isinstance(value, types.MethodType):
        return _is_others(value.__func__)
    if isinstance(value, functools.partial):
        return _is_others(value.func)
    if isinstance(value, type) or not callable(value):
        return False
    called = type(value).__call__
    return isinstance(called, types.FunctionType) and is_foreign(called)


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
