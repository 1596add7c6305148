"""What there is to look into in Python's objects, however they keep it."""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any


def parts_of(value: Any) -> Iterable[Any] | None:
    """What there is to some kinds of objects that hide it or cannot be pickled."""
    kind = type(value)
    if kind is types.MethodType:
        return value.__self__, value.__func__
    if kind is property:
        return value.fget, value.fset, value.fdel
    if kind in (classmethod, staticmethod):
        return (value.__func__,)
    if kind is functools.cached_property:
        return (value.func,)
    if kind is types.MappingProxyType:
        return (dict(value),)
    if kind is weakref.ref:
        return (value(),)
    if kind is slice:
        return value.start, value.stop, value.step
    return None


def own_dict(value: Any) -> Any:
    """An object's dictionary, without asking its ``__getattr__``; None: it has none."""
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None


def is_named(value: Any, name: str) -> bool:
    """Whether it is what NumPy (a ufunc) or the module of its class has by this name."""
    modules = sys.modules["numpy"], sys.modules.get(type(value).__module__)
    return any(getattr(module, name, None) is value for module in modules)


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Of an object's dictionary and of its slots."""
    yield from (own_dict(value) or {}).items()
    for kind in type(value).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, types.MemberDescriptorType):
                with suppress(AttributeError):  # It is not filled.
                    yield f"{kind.__qualname__}.{name}", member.__get__(value)


def contents(cells: Iterable[types.CellType]) -> Iterator[Any]:
    """Of a closure's cells."""
    for cell in cells:
        try:
            yield cell.cell_contents
        except ValueError:  # It is not filled yet.
            yield "empty"


def names_in(code: types.CodeType) -> Iterator[str]:
    """Names of globals and attributes, of functions inside too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)
