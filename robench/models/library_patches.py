"""What users have put into the libraries' own places: torch's functions, names that Python knows."""

from __future__ import annotations

import builtins
import functools
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robench.models.library_code import is_foreign, is_of_library

_OF_C = (types.BuiltinFunctionType, types.ModuleType, int, str, torch.dtype)
"""Kinds of most of what torch holds: nothing of these calls another's code"""
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
    held = [value for value in held if type(value) not in _OF_C]
    return [value for value in held if not isinstance(value, type) and is_others(value)]


def is_others(value: Any) -> bool:
    """Whether a function, a class or a callable object is none of a library's: what would run is
    another's code."""
    if isinstance(value, types.FunctionType):
        return is_foreign(value)
    if isinstance(value, types.MethodType):
        return is_others(value.__func__)
    if isinstance(value, functools.partial):
        return is_others(value.func)
    if isinstance(value, type):
        return not is_of_library(value.__module__)
    if isinstance(value, nn.Module):  # of whatever class: torch has none lying about
        return True
    called = type(value).__call__
    return isinstance(called, types.FunctionType) and is_foreign(called)


def put_in_builtins() -> dict[str, Any]:
    """What every module sees under a name without importing it, and Python did not put there."""
    return {
        name: value
        for name, value in vars(builtins).items()
        # Of what is not called Python itself has None and its like alone.
        if not name.startswith("_") and (not callable(value) or is_others(value))
    }
