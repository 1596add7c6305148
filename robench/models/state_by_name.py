"""What code looks up by name while it runs: files, the environment, what a module holds.

Which file, variable or entry it will be is known to nobody beforehand, so that code which does
this computes something that no hash holds. Only code that runs when a model is called counts:
constructors and loaders read files in every other project, and what they read lies in the model.
"""

from __future__ import annotations

import builtins
import dis
import functools
import sys
import types
from collections.abc import Iterator
from importlib.machinery import PathFinder
from itertools import pairwise
from typing import Any

from robench.models.library_code import (
    is_foreign,
    is_installed,
    is_librarys_file,
    is_of_library,
)
from robench.models.object_parts import contents, names_in

_READERS = {
    "builtins": ("open", "eval", "exec", "globals", "__import__", "input"),
    "os": ("environ", "environb", "getenv", "getenvb", "open", "listdir", "scandir", "popen"),
    "os.path": ("exists", "isfile", "getsize", "getmtime"),
    "sys": ("modules", "argv", "_getframe"),
    "importlib": ("import_module", "reload"),
    "inspect": ("currentframe", "stack", "get_annotations", "getdoc"),
    "typing": ("get_type_hints",),
    "dataclasses": ("fields",),
    "subprocess": ("run", "Popen", "check_output", "getoutput"),
    "socket": ("socket", "create_connection"),
    "urllib.request": ("urlopen",),
    "sqlite3": ("connect",),
    "shelve": ("open",),
    "mmap": ("mmap",),
    "linecache": ("getline", "getlines"),
    "numpy": ("load", "loadtxt", "genfromtxt", "fromfile", "memmap"),
    "torch": ("load",),
    "torch.jit": ("load",),
    "torch.hub": ("load", "load_state_dict_from_url"),
    "safetensors.torch": ("load_file",),
    "safetensors": ("safe_open",),
    "PIL.Image": ("open",),
    "cv2": ("imread",),
}

_ATTRIBUTES = {
    *("__annotations__", "__doc__", "__globals__", "__builtins__", "__dataclass_fields__"),
    *("f_globals", "f_locals", "f_builtins", "read_text", "read_bytes"),
}
"""Names of attributes that lead to such state, or that the hash leaves out"""

_BEFORE_A_CALL = {
    *("__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__", "__del__"),
    *("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__", "__getnewargs__"),
    *("__copy__", "__deepcopy__", "__repr__", "__str__", "__dir__", "__sizeof__", "__format__"),
    *("state_dict", "load_state_dict", "_load_from_state_dict", "_save_to_state_dict"),
    *("extra_repr", "get_extra_state", "set_extra_state", "_apply", "to", "train", "eval"),
}
"""Methods that Python or torch call, but not in a forward pass"""


_MAKING = ("__new__", "__init__", "__post_init__")


def _readers() -> dict[int, str]:
    loaded = {name: sys.modules[name] for name in _READERS if name in sys.modules}
    return {
        id(found): f"{name}.{part}".removeprefix("builtins.")
        for name, module in loaded.items()
        for part in _READERS[name]
        if (found := getattr(module, part, None)) is not None
    }


def is_users(module: object) -> bool:
    """Whether it is a module that is neither a library's nor of an installed package."""
    if not isinstance(module, types.ModuleType) or is_of_library(module.__name__):
        return False
    file = getattr(module, "__file__", None)
    return file is None or _is_users_file(file)


def _is_users_file(file: str | None) -> bool:
    return file is not None and not is_librarys_file(file)


def _file_of(name: str) -> str | None:
    """Where a top-level module or package would be loaded from, which happens to none."""
    try:
        found = PathFinder.find_spec(name)
    except (ImportError, ValueError, OSError):
        return None
    return (
        None
        if found is None
        else found.origin or next(iter(found.submodule_search_locations or ()), None)
    )


class RunningCode:
    """The functions of a hash, by the names under which others can call them."""

    def __init__(self) -> None:
        self.readers = _readers()
        """What looks things up by name: the object's id → what it is called"""
        self._functions: list[types.FunctionType] = []
        self._by_name: dict[str, list[Any]] = {}
        self._named: set[int] = set()
        self._of_class: dict[type, list[types.FunctionType]] = {}
        self._made: set[type] = set()
        self._imported: set[str] = set()

    def add(self, function: types.FunctionType) -> None:
        """A function; what nobody names, such as a hook, may run at any time."""
        self._functions.append(function)

    def made(self, kind: type) -> None:
        """There is an object of this class."""
        self._made.add(kind)

    def member(self, kind: type, name: str, value: object) -> None:
        """What a class has under a name; Python and torch call what overrides a base's method."""
        if name in _MAKING:  # which run where the class is named
            self._named.update(map(id, _functions_of(value)))
        else:
            self.mentioned(name, value)
        self._named.update(map(id, kind.__mro__[1:]))
        dunder = name.startswith("__") and name.endswith("__")
        libraries = (base for base in kind.__mro__ if is_of_library(base.__module__))
        if name not in _BEFORE_A_CALL and (
            dunder or name == "forward" or any(name in vars(base) for base in libraries)
        ):
            self._of_class.setdefault(kind, []).extend(_functions_of(value))

    def mentioned(self, name: str, value: object) -> None:
        """What a function's code can reach by a name."""
        found: list[Any] = [value] if isinstance(value, type) else _functions_of(value)
        self._by_name.setdefault(name, []).extend(found)
        self._named.update(map(id, found))

    def held(self, module: types.ModuleType) -> dict[str, Any]:
        """What a user's module holds under which name; nothing of an installed one."""
        names = vars(module) if is_users(module) else {}
        held = {name: value for name, value in names.items() if not name.startswith("__")}
        for name, value in held.items():
            self.mentioned(name, value)
        return held

    def reads(self) -> Iterator[str]:
        """What is looked up by name where a model runs, and by which function."""
        todo: list[Any] = [f for f in self._functions if id(f) not in self._named]
        there = {base for kind in self._made for base in kind.__mro__}
        todo += [k for k in self._of_class if id(k) not in self._named and k not in there]
        for kind in self._made:
            todo += self._called_of(kind)
        seen = set[int]()
        while todo:
            running = todo.pop()
            if id(running) in seen:
                continue
            seen.add(id(running))
            if isinstance(running, type):
                made = [vars(base).get(name) for base in running.__mro__ for name in _MAKING]
                todo += [*self._called_of(running), *(f for m in made for f in _functions_of(m))]
                continue
            if is_foreign(running) and not is_installed(running.__code__):
                for what in dict.fromkeys(_looked_up(running, self.readers)):
                    yield f"what {running.__qualname__} finds by {what}"
                self._imported |= _imported_in(running.__code__)
            for name in names_in(running.__code__):
                todo += self._by_name.get(name, ())

    def not_imported(self) -> set[str]:
        """The user's modules that running code, as far as it is known, would import first."""
        tops = {name.partition(".")[0] for name in self._imported if name not in sys.modules}
        return {name for name in tops if name and _is_users_file(_file_of(name))}

    def _called_of(self, kind: type) -> list[types.FunctionType]:
        """What Python and torch call of an object of this class."""
        return [f for base in kind.__mro__ for f in self._of_class.get(base, ())]


def _functions_of(value: Any) -> list[types.FunctionType]:
    if isinstance(value, types.FunctionType):
        return [value]
    if isinstance(value, (classmethod, staticmethod, types.MethodType)):
        return _functions_of(value.__func__)
    if isinstance(value, functools.cached_property):
        return _functions_of(value.func)
    if isinstance(value, property):
        return [f for part in (value.fget, value.fset, value.fdel) for f in _functions_of(part)]
    return []


def _imported_in(code: types.CodeType) -> set[str]:
    """Names of modules in import statements, inside too; those of relative ones lack their package,
    which is loaded."""
    found = {step.argval for step in _steps(code) if step.opname == "IMPORT_NAME"}
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return found.union(*map(_imported_in, inner))


_NOTHING = object()


@functools.lru_cache(maxsize=512)
def _steps(code: types.CodeType) -> tuple[dis.Instruction, ...]:
    """Kept, as a model is hashed several times on its way to a record."""
    return tuple(dis.get_instructions(code))


def _looked_up(function: types.FunctionType, readers: dict[int, str]) -> Iterator[str]:
    cells = dict(
        zip(function.__code__.co_freevars, contents(function.__closure__ or ()), strict=True)
    )
    yield from _in_code(function.__code__, function.__globals__, cells, readers)


def _in_code(
    code: types.CodeType, known: dict[str, Any], local: dict[str, Any], readers: dict[int, str]
) -> Iterator[str]:
    """Follows names and attributes of modules; what else is on the stack is not known."""
    local, imported = dict(local), None
    value: Any = _NOTHING
    for step, after in pairwise([*_steps(code), None]):
        assert step is not None
        kind, name = step.opname, step.argval
        if kind == "IMPORT_NAME":
            imported = sys.modules.get(name, _NOTHING)
            top = after is not None and after.opname.startswith("STORE")
            value = sys.modules.get(name.partition(".")[0], _NOTHING) if top else imported
        elif kind == "IMPORT_FROM":
            value = getattr(imported, name, _NOTHING)
        elif kind.startswith("STORE"):
            local |= {name: value} if isinstance(name, str) else {}
            value = _NOTHING
        elif kind.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLASSDEREF")):
            # Newer versions load two at once.
            value = local.get(name[-1] if isinstance(name, tuple) else name, _NOTHING)
        elif kind.startswith(("LOAD_GLOBAL", "LOAD_NAME")):
            value = known.get(name, getattr(builtins, name, _NOTHING))
        elif kind.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            if name in _ATTRIBUTES or (name == "__dict__" and is_users(value)):
                yield name
            is_space = isinstance(value, (types.ModuleType, type))
            value = vars(value).get(name, _NOTHING) if is_space else _NOTHING
        else:
            value = _NOTHING
        if id(value) in readers:
            yield readers[id(value)]
        goes_on = after is not None and after.opname.startswith(("LOAD_ATTR", "LOAD_M", "STORE"))
        if is_users(value) and not goes_on and kind != "IMPORT_NAME":
            yield f"names in {value.__name__}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _in_code(constant, known, local, readers)
