"""Custom operators: what ``torch.ops`` calls by name, and where its code is.

``torch.library.custom_op`` keeps the functions that it was given. What is registered in another
way, from Python or C++, is in torch's dispatcher alone, which gives no code out.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from robench.models.library_code import is_foreign
from robench.models.object_parts import contents

_LIBRARIES = {
    *("aten", "prim", "prims", "quantized", "_quantized", "quantization", "onednn", "mkldnn"),
    *("mkldnn_prepacked", "sparse", "torchvision", "image", "higher_order"),
}
"""Namespaces of torch and torchvision, which go by name"""


def _in_python() -> set[str]:
    """``namespace/name/dispatch key`` of everything that Python has registered."""
    return set(getattr(torch.library, "_impls", ()))


_AT_IMPORT = frozenset(_in_python())


def own_operators(value: object, names: set[str]) -> list[str] | None:
    """``namespace::name`` of operators that no library has: those that an object stands for.

    Of ``torch.ops`` itself they are those of the namespaces among ``names``, which code mentions
    beside it. None: the object stands for no operators.
    """
    kind = type(value)
    if value is torch.ops:
        found = sorted({_space(name) for name in _names()} & names)
        own = [space for space in found if space not in _LIBRARIES]
        return [name for space in own for name in _operators_of(space)] if found else ["torch.ops"]
    if kind.__name__ == "CustomOpDef":
        name = str(getattr(value, "_qualname", ""))
    elif kind.__module__ != "torch._ops":
        return None
    elif isinstance(value, types.ModuleType):
        name = value.__name__.removeprefix("torch.ops.")
    else:
        name = str(getattr(value, "_qualified_op_name", None) or getattr(value, "_name", ""))
    if _space(name) in _LIBRARIES:
        return []
    return [_plain(name)] if "::" in name else _operators_of(name)


def functions_of(operator: str) -> list[Any] | None:
    """The users' functions behind ``namespace::name``, by what they do; None: not to be had."""
    try:
        from torch._library.custom_ops import OPDEFS  # Not public.

        found = vars(OPDEFS[operator])
        own, disabled = set(found["_lib"]._op_impls), sorted(map(str, found["_disabled_kernel"]))
    except (ImportError, AttributeError, KeyError, TypeError):
        return None
    start = operator.replace("::", "/")
    if not {key for key in _in_python() if key.startswith((f"{start}/", f"{start}."))} <= own:
        return None
    behind: list[Any] = [disabled]
    for name in sorted(name for name in found if name.endswith(("_fn", "_fns"))):
        kernels = found[name] if isinstance(found[name], dict) else {"": found[name]}
        behind += [(name, str(key), list(_inside(kernels[key], set()))) for key in kernels]
    return behind


def _inside(function: object, seen: set[int]) -> Iterator[object]:
    """What torch has wrapped into functions of its own, whose state changes when they are used."""
    if not callable(function) or id(function) in seen or type(function).__name__ == "CustomOpDef":
        return
    seen.add(id(function))
    if not isinstance(function, types.FunctionType) or is_foreign(function):
        yield function
        return
    for part in (*contents(function.__closure__ or ()), vars(function).get("__wrapped__")):
        yield from _inside(part, seen)


def replaced_in_torch() -> list[str]:
    """torch's own operators that Python code has taken the place of since robench was loaded."""
    new = {key for key in _in_python() - _AT_IMPORT if key.startswith("aten/")}
    return sorted(key for key in new - _of_vmap(len(new)) if not key.endswith("/Meta"))


@cache
def _of_vmap(registered: int) -> set[str]:
    """What torch itself registers at a process's first vmap; by how many there are by then."""
    if not registered:
        return set()
    modules = [m for name, m in sys.modules.items() if name.startswith("torch._functorch.")]
    held = [item for module in modules for item in vars(module).values()]
    libraries = [item for item in held if isinstance(item, torch.library.Library)]
    return set().union(*(getattr(library, "_op_impls", ()) for library in libraries))


def _operators_of(space: str) -> list[str]:
    return sorted({_plain(name) for name in _names() if _space(name) == space})


def _names() -> list[str]:
    listed: list[str] = torch._C._dispatch_get_all_op_names()
    return listed


def _space(name: str) -> str:
    return name.partition("::")[0]


def _plain(name: str) -> str:
    return name.partition(".")[0]
