"""What a module computes, as a hash: its code, and every attribute that is no parameter.

Stored results must not be taken for those of a module whose ``forward`` was edited, whose setting
was changed, or that lies in a list instead of being registered. What cannot be hashed makes the
identity unique: its results are then never reused, rather than reused wrongly.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import sys
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robench.registry import identity_of

_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, Enum, PurePath)
_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_INTERNAL = set(vars(nn.Module())) - {"_forward_hooks", "_forward_pre_hooks"}
_SAME_EVERYWHERE = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
"""Top-level modules whose versions change a number by rounding only"""


def code_identity(module: nn.Module) -> str:
    """SHA-256 of all that decides what a module computes besides its parameters and buffers.

    These are its structure, its forward hooks, every attribute with what it refers to, and the
    source of every package outside torch, numpy and the standard library that any of it is from.
    """
    seen = _Seen()
    for name, part in module.named_modules():
        seen.add(name)
        seen.module(part)
    for top in sorted(seen.packages):
        seen.add(str(identity_of(seen.packages[top])))
    return seen.digest.hexdigest()


class _Seen:
    """A hash over objects, each one looked into once."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.packages: dict[str, object] = {}
        """Top-level package → something that is from it"""
        self._places: dict[int, int] = {}
        self._alive: list[object] = []  # so that no id is given out again

    def add(self, text: str) -> None:
        """Hash a text, apart from the next one."""
        self.digest.update(f"{len(text)}:{text}".encode())

    def module(self, part: nn.Module) -> None:
        """A module by itself, without its parameters, buffers and registered modules."""
        self._kind(type(part))
        self.add(part.extra_repr())
        if not self._is_new(part):
            return
        if isinstance(part, torch.jit.ScriptModule):
            self.add(str(part.inlined_graph))
        else:
            attributes = {k: v for k, v in vars(part).items() if k not in _INTERNAL}
            for hooks in ("_forward_hooks", "_forward_pre_hooks"):
                # Their keys count up through the life of the process.
                attributes[hooks] = list(attributes[hooks].values())
            self._pairs(attributes)

    def _is_new(self, value: object) -> bool:
        place = self._places.setdefault(id(value), len(self._places))
        self.add(f"#{place}")
        if place < len(self._alive):
            return False
        self._alive.append(value)
        return True

    def _kind(self, kind: Any) -> None:
        """A class or function by name; the code of its package is hashed at the end."""
        self.add(f"{kind.__module__}.{kind.__qualname__}")
        for each in (kind, *getattr(kind, "__mro__", ())):
            top = str(each.__module__ or "builtins").partition(".")[0]
            if top not in _SAME_EVERYWHERE:
                self.packages.setdefault(top, each)

    def _pairs(self, values: Mapping[Any, Any]) -> None:
        for name in sorted(values, key=repr):
            self._value(name)
            self._value(values[name])

    def _all(self, values: Iterable[Any]) -> None:
        for value in values:
            self._value(value)
        self.add("end")

    def _value(self, value: Any) -> None:
        self.add(type(value).__qualname__)
        if isinstance(value, (*_PLAIN, *_TORCH, np.generic, np.dtype)):
            self.add(repr(value))
        elif isinstance(value, (Tensor, np.ndarray)):
            self._array(value)
        elif isinstance(value, nn.Module) and id(value) not in self._places:
            for name, part in value.named_modules():
                self.add(name)
                self.module(part)
            self._pairs(dict((*value.named_parameters(), *value.named_buffers())))
        elif not self._is_new(value):
            return
        elif isinstance(value, (types.ModuleType, logging.Logger)):
            self.add(getattr(value, "__name__", ""))
        elif isinstance(value, Mapping):
            self._pairs(value)
        elif isinstance(value, (list, tuple, deque)):
            self._all(value)
        elif isinstance(value, (set, frozenset)):
            self._all(sorted(value, key=repr))
        elif isinstance(value, functools.partial):
            self._all((value.func, value.args, value.keywords))
        elif callable(value) and hasattr(value, "__qualname__"):
            self._function(value)
        elif hasattr(value, "__dict__"):
            self._kind(type(value))
            self._pairs(vars(value))
        else:
            self.add(uuid.uuid4().hex)

    def _array(self, value: Tensor | np.ndarray[Any, Any]) -> None:
        try:
            plain = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(value)
            content = plain.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        except (TypeError, ValueError, RuntimeError):  # sparse ones, objects
            self.add(uuid.uuid4().hex)
            return
        self.add(f"{plain.dtype} {tuple(plain.shape)}")
        self.digest.update(content)

    def _function(self, value: Callable[..., Any]) -> None:
        self._kind(value)
        if isinstance(value, types.MethodType):
            self._all((value.__self__, value.__func__))
        elif isinstance(value, types.FunctionType):
            self._code(value.__code__)
            closure = inspect.getclosurevars(value).nonlocals
            self._all((value.__defaults__, value.__kwdefaults__, closure))
        elif isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, type):
            self._value(value.__self__)

    def _code(self, code: types.CodeType) -> None:
        # Two lambdas of one line have one source: the byte code tells them apart.
        self.add(f"{code.co_code.hex()} {code.co_names} {code.co_varnames}")
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._code(constant)
            else:
                self._value(constant)
