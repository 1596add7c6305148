"""What a module computes, as a hash: its code, and every object that it holds or mentions.

Stored results must not be taken for those of a module whose ``forward`` was edited, whose setting
was changed, or that lies in a list instead of being registered. What cannot be hashed makes the
identity unique: its results are then never reused, rather than reused wrongly.

Everything is looked into alike: an object through its attributes and what it would be pickled as,
a function through its byte code, defaults, closure and the globals that it mentions, a class
through its members. By name alone go the classes and functions that torch, NumPy, the standard
library and robench itself have under that name. Of installed packages, whose whole source is
hashed, the globals are not looked into.
"""

from __future__ import annotations

import hashlib
import re
import sys
import types
import uuid
import warnings
from abc import ABC
from collections import ChainMap, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from robench.models.library_code import (
    is_foreign,
    is_installed,
    is_librarys_own,
    is_of_library,
    is_patched,
)
from robench.models.library_patches import is_plain, put_in_builtins, put_in_torch
from robench.models.object_parts import attributes, contents, is_named, names_in, own_dict, parts_of
from robench.models.operators import functions_of, own_operators, replaced_in_torch
from robench.models.program_parts import program_parts
from robench.models.state_by_name import RunningCode
from robench.models.wrapper import is_compiled, own_backend, unwrapped
from robench.registry import source_hash

_BY_REPR = (type(None), bool, float, complex, str, bytes, bytearray, range, types.EllipsisType)
_TORCH_BY_REPR = (torch.dtype, torch.device, torch.layout, torch.memory_format, np.dtype)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)

_STATELESS = {object, ABC, Generic, Protocol}
"""Bases that keep nothing of an object where Python cannot see it"""
_OF_SLOTS = (types.GetSetDescriptorType, types.MemberDescriptorType)
_IN_C = (
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.BuiltinFunctionType,
)
_NOT_CODE = {"__module__", "__doc__", "__annotations__", "__abstractmethods__", "_abc_impl"} | {
    "__dataclass_fields__",
    "__dataclass_params__",
    "__orig_bases__",
    "__parameters__",
    "__static_attributes__",
    "__firstlineno__",
    "__slotnames__",
    "_autograd_function_id",
}
"""Members of a class that compute nothing"""

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GLOBAL_HOOKS = tuple(
    name for name in sorted(vars(nn.modules.module)) if re.fullmatch("_global_.*_hooks", name)
)
_COMPUTING = {"_parameters", "_buffers", "_modules", "training"}
_OF_COMPILATION = {"_compiled_call_impl", "_is_torch_compile", "_compile_kwargs"}  # Fabric's
_BOOKKEEPING = set(vars(nn.Module())) - _COMPUTING | _OF_COMPILATION
_OF_A_GRAPH = {"_graph", "_code", "meta", "_tracer_cls", "_tracer_extras", "_lineno_map"}
"""Attributes of ``torch.fx.GraphModule`` that its code says again"""


class CodeIdentity(NamedTuple):
    """What decides the numbers of some objects."""

    sha256: str
    unique_because: tuple[str, ...]
    """What could not be hashed, so that this identity is never found again; usually nothing"""
    modules: frozenset[str]
    """Modules and packages whose source is in the hash"""


def code_identity(*things: object, runs: bool = True) -> CodeIdentity:
    """SHA-256 of all that decides what modules, functions or other objects compute.

    That is their attributes with all that these refer to, parameters and buffers included, their
    code, and the source of every package that any of it is from, but torch, NumPy, robench and
    the standard library. What code looks up by name makes it unique, unless it no longer ``runs``.
    """
    seen = _Seen()
    with warnings.catch_warnings():
        # Objects are asked how they would be pickled, which some deprecate.
        warnings.simplefilter("ignore")
        try:
            for thing in things:
                seen.value(thing)
            # What every module of the process calls.
            seen._all(vars(torch.nn.modules.module)[name] for name in _GLOBAL_HOOKS)
            for function in put_in_torch():
                seen.value(function)
        except RecursionError:
            seen.add(seen.unknown("objects nested too deeply"))
        looked_up = seen.running.reads() if runs else ()
        for what in (*looked_up, *replaced_in_torch()):
            seen.add(seen.unknown(what))
        for name in sorted(seen.sources):
            seen.add(source_hash(name) or seen.unknown(f"{name}, which has no source file"))
        for name in sorted(seen.running.not_imported() - seen.sources):
            seen.add(f"{name} {source_hash(name)}")
    reasons = tuple(dict.fromkeys(seen.reasons))
    return CodeIdentity(seen.digest.hexdigest(), reasons, frozenset(seen.sources))


class _Seen:
    """A hash over objects, each one looked into once and known by its place after that."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.sources: set[str] = set()
        """Top-level modules and packages whose source belongs to the hash"""
        self.reasons: list[str] = []
        self.running = RunningCode()
        self._path: list[str] = []
        self._places: dict[int, int] = {}
        self._alive: list[object] = []  # so that no id is given out again
        self._mangled: dict[bytes, bytes] = {}
        self._built_in = put_in_builtins()

    def add(self, text: str) -> None:
        """Hash a text, apart from the next one."""
        content = text.encode(errors="surrogatepass")
        self.digest.update(b"%d:%b" % (len(content), content))

    def unknown(self, what: str) -> str:
        """Note what cannot be hashed; returns a text that is never the same twice."""
        self.reasons.append(f"{what} at {'.'.join(self._path)}" if self._path else what)
        return uuid.uuid4().hex

    def value(self, value: Any) -> None:
        """Hash any object; a compiled module is the module inside."""
        value = unwrapped(value) if isinstance(value, nn.Module) else value
        kind = type(value)
        if kind in _BY_REPR or isinstance(value, _TORCH_BY_REPR):
            self.add(f"{kind.__name__} {value!r}")
        elif kind is int:
            self.add(f"int {value:x}")  # a decimal text has a limit of digits
        elif isinstance(value, np.generic) and is_librarys_own(value):
            self._array(np.asarray(value))
        elif self._is_new(value):
            self._look_into(value, kind)

    def _is_new(self, value: object) -> bool:
        place = self._places.setdefault(id(value), len(self._places))
        self.add(f"#{place}")
        if place < len(self._alive):
            return False
        self._alive.append(value)
        return True

    def _look_into(self, value: Any, kind: type) -> None:
        self.add(f"{kind.__module__}.{kind.__qualname__}")
        self.running.made(kind)
        if id(value) in self.running.readers:
            self.add(self.unknown(self.running.readers[id(value)]))
        elif (operators := own_operators(value, set())) is not None:
            self._operators(operators)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, types.ModuleType):
            self._module_of(value.__name__)
            self._pairs(self.running.held(value))
        elif isinstance(value, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            self._program(value)
        elif isinstance(value, nn.Module):
            self._network(value)
        elif (parts := parts_of(value)) is not None:
            self._all(parts)
        else:
            try:
                self._object(value, kind)
            except RecursionError:
                raise
            except Exception:  # The object's own code, asked for an attribute or how to rebuild it.
                self.add(self.unknown(f"a {kind.__module__}.{kind.__qualname__}"))

    def _all(self, values: Iterable[Any]) -> None:
        values = list(values)
        self.add(str(len(values)))
        for value in values:
            self.value(value)

    def _pairs(self, values: Mapping[Any, Any]) -> None:
        self.add(str(len(values)))
        for name in list(values):
            self.value(name)
            self._path.append(str(name) if isinstance(name, (str, int)) else type(name).__name__)
            self.value(values[name])
            self._path.pop()

    # --- objects -----------------------------------------------------------------------------

    def _network(self, module: nn.Module) -> None:
        self.value(type(module))
        own = {k: v for k, v in vars(module).items() if k not in _BOOKKEEPING}
        if isinstance(module, torch.fx.GraphModule):
            own = {k: v for k, v in own.items() if k not in _OF_A_GRAPH}
            self.add(module.code)
        if (backend := own_backend(module)) is not None:
            own = (
                {"_orig_mod": vars(module)["_modules"]["_orig_mod"]} if is_compiled(module) else own
            )
            self.value(backend)
        self._pairs(own)
        for name in _HOOKS:
            marks = [  # the keys count up through the life of the process
                vars(module).get(f"{name}_{how}", {}) for how in ("with_kwargs", "always_called")
            ]
            for key, hook in (vars(module).get(name) or {}).items():
                self.add(f"{name} {[key in mark for mark in marks]}")
                self.value(hook)

    def _object(self, value: Any, kind: type) -> None:
        self.value(kind)
        if isinstance(value, (Tensor, np.ndarray)):
            self._array(value)
            self._pairs({k: v for k, v in attributes(value) if not k.startswith("_dynamo")})
            return
        if isinstance(value, _CONTAINERS):
            self._content(value)
            if kind in _CONTAINERS[:-1]:
                return
        if not is_librarys_own(kind):
            self._pairs(dict(attributes(value)))
        hidden = {base for base in kind.__mro__ if is_librarys_own(base)} - _STATELESS
        if hidden or own_dict(value) is None:
            self._pickled(value)

    def _content(self, value: Any) -> None:
        # What the built-in container holds, whatever a subclass of it says.
        if isinstance(value, dict):
            self._pairs(dict(dict.items(value)))
        elif isinstance(value, (set, frozenset)):
            self._all(sorted(value, key=_order))
        else:
            base = next(base for base in (list, tuple, deque) if isinstance(value, base))
            self._all(base.__iter__(value))

    def _pickled(self, value: Any) -> None:
        """What rebuilds the object; nothing of it is kept or run."""
        reduced = value.__reduce_ex__(4)
        if not isinstance(reduced, str):
            self._all(list(part) if isinstance(part, Iterator) else part for part in reduced)
        elif hasattr(value, "__wrapped__"):
            self._pairs(vars(value))
        elif is_librarys_own(value) or is_named(value, reduced):
            self.add(reduced)
        else:
            self.add(self.unknown(f"{reduced}, a {type(value).__qualname__},"))

    def _array(self, value: Tensor | np.ndarray[Any, Any]) -> None:
        if isinstance(value, np.ndarray):
            self.add(f"{value.dtype!r} {value.shape}")
            if value.dtype.hasobject:
                self.value(np.asarray(value).tolist())
            else:
                self.digest.update(np.ascontiguousarray(value).tobytes())
            return
        try:
            plain = value.detach()
            self.add(f"{plain.dtype} {tuple(plain.shape)} {plain.layout}")
            plain = plain.to_dense() if plain.layout != torch.strided else plain
            plain = plain.cpu().resolve_conj().resolve_neg().contiguous().flatten()
            self.digest.update(plain.view(torch.uint8).numpy().data)
        except (TypeError, ValueError, RuntimeError, NotImplementedError):  # quantised, on meta
            self.add(self.unknown(f"a tensor of {value.dtype}"))

    def _program(self, value: Any) -> None:
        """TorchScript: what its file would hold, without what names places in a source."""
        try:
            for part in program_parts(value, self._mangled):
                self.add(part.hex())
        except Exception:  # Objects that TorchScript cannot save raise several things.
            self.add(self.unknown("a TorchScript module that cannot be saved"))

    # --- code --------------------------------------------------------------------------------

    def _class(self, kind: type) -> None:
        self.add(f"{kind.__module__}.{kind.__qualname__}")
        library = is_librarys_own(kind)
        if not library:
            self._module_of(kind.__module__)
            self.value(type(kind))
        self._all(kind.__bases__)
        for name, member in list(vars(kind).items()):
            if isinstance(member, _OF_SLOTS) or name in _NOT_CODE:
                continue
            if isinstance(member, _IN_C) and (library or name.startswith("__")):
                continue
            # A library's own class may have been given another method.
            if not library or is_patched(member, f"{kind.__qualname__}.{name}"):
                self.add(name)
                self.running.member(kind, name, member)
                self.value(member)

    def _function(self, function: types.FunctionType) -> None:
        self.add(f"{function.__globals__.get('__name__')}.{function.__qualname__}")
        if is_librarys_own(function):
            return
        self._code(function.__code__)
        self._all((function.__defaults__, function.__kwdefaults__))
        self._all(contents(function.__closure__ or ()))
        self._pairs(vars(function))
        self.running.add(function)
        if is_foreign(function):
            self._module_of(function.__globals__.get("__name__"))
            if not is_installed(function.__code__):
                self._mentioned(function)

    def _code(self, code: types.CodeType) -> None:
        self.add(
            f"{code.co_code.hex()} {code.co_exceptiontable.hex()} {code.co_flags} {code.co_names} "
            f"{code.co_varnames} {code.co_freevars} {code.co_cellvars} "
            f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount}"
        )
        self._all(code.co_consts)

    def _mentioned(self, function: types.FunctionType) -> None:
        """Globals that the function's code names, and what it names of the modules among them."""
        names = sorted(set(names_in(function.__code__)))
        known = ChainMap(function.__globals__, self._built_in, sys.modules)
        found = [(n, known[n]) for n in names if n in known]
        modules = set[str]()
        for name, value in found:
            if id(value) in self.running.readers:
                self.add(name)  # it counts only if the function runs
            elif (operators := own_operators(value, set(names))) is not None:
                self._operators(operators)
            elif not isinstance(value, types.ModuleType):
                self.add(name)
                self.running.mentioned(name, value)
                self._path.append(name)
                self.value(value)
                self._path.pop()
            elif value.__name__ not in modules:
                modules.add(value.__name__)
                self._module_of(value.__name__)
                library = is_of_library(value.__name__)
                for inner in names:
                    part = vars(value).get(inner, found)
                    is_module = isinstance(part, types.ModuleType)
                    patched = callable(part) and not isinstance(part, type)
                    patched = patched and is_patched(part, inner)
                    patched = patched or (is_plain(part) and not inner.startswith("_"))
                    if part is not found and (is_module or patched or not library):
                        found.append((inner, part))

    def _operators(self, names: Iterable[str]) -> None:
        for name in names:
            self.add(name)
            functions = functions_of(name)
            if functions is None:
                self.add(self.unknown(f"the operator {name}"))
            self._all(functions or ())

    def _module_of(self, name: object) -> None:
        """The source of a module, or of the whole package that it is in, belongs to the hash."""
        if not isinstance(name, str):  # of a class in C that describes its members' instead
            return
        self.add(name)
        # A name that is no module's, as in what ``namedtuple`` makes, has no source of its own.
        if name in sys.modules and not is_of_library(name):
            top = name.partition(".")[0]
            self.sources.add(top if hasattr(sys.modules.get(top), "__path__") else name)


def _order(value: object) -> str:
    """What puts the members of a set into the same order in every process."""
    if isinstance(value, (tuple, frozenset)):
        parts = [_order(part) for part in value]
        return f"({', '.join(parts if isinstance(value, tuple) else sorted(parts))})"
    return repr(value) if type(value) in (*_BY_REPR, int) else ""
