"""Which code is torch's, NumPy's, the standard library's or robench's own, and goes by its name.

Their versions change a number by rounding only, or raise the revision of results.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import types
from functools import lru_cache
from pathlib import Path
from typing import Any

_LIBRARIES = {"torch", "numpy", "robench"}
_INSTALLED = {"site-packages", "dist-packages"}
_STANDARD = sysconfig.get_path("stdlib")


def is_of_library(module: str) -> bool:
    """Whether a module of this name is one of a library's."""
    top = module.partition(".")[0]
    return top in _LIBRARIES or is_of_standard_library(top)


def is_of_standard_library(top: str) -> bool:
    """Whether a top-level module of this name is the standard library's."""
    # By its file too: a user's own module may be called ``test`` or ``code``.
    if top not in sys.stdlib_module_names or top == "__main__":
        return False
    file = getattr(sys.modules.get(top), "__file__", None)
    return file is None or _is_standard(file)


@lru_cache(maxsize=1024)
def _is_standard(file: str) -> bool:
    return Path(file).is_relative_to(_STANDARD)


@lru_cache(maxsize=1024)
def _is_in_packages(file: str) -> bool:
    return bool(_INSTALLED & set(Path(file).parts))


def is_librarys_own(value: Any) -> bool:
    """Whether a function, a class, or an object's class is what a library has by its name.

    Where a function was made counts, not where it says: ``functools.wraps`` copies a name.
    """
    if isinstance(value, types.FunctionType):
        module = value.__globals__.get("__name__")
    else:
        module = getattr(value, "__module__", None)
        value = value if hasattr(value, "__qualname__") else type(value)
    if not isinstance(module, str) or not is_of_library(module):
        return False
    found: Any = sys.modules.get(module)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def is_foreign(function: types.FunctionType) -> bool:
    """Whether a function was made in a module that is no library's, or in none: what is generated
    has globals of its own, whatever name they bear."""
    name = function.__globals__.get("__name__")
    if not isinstance(name, str) or not is_of_library(name):
        return True
    # Some of torch's modules have put an object into their own place, and keep their specification.
    own = getattr(sys.modules.get(name), "__dict__", None) is function.__globals__
    return not own and "__spec__" not in function.__globals__


def is_installed(code: types.CodeType) -> bool:
    """Whether it is from an installed package, which changes as a whole or not at all."""
    return _is_in_packages(code.co_filename)


def is_librarys_file(path: object) -> bool:
    """Whether a path is of a file or folder of Python's installation."""
    if not isinstance(path, (str, bytes)):
        return False
    place = os.fsdecode(path)
    return _is_in_packages(place) or _is_standard(place)


def is_patched(member: object, name: str) -> bool:
    """Whether a library has ``member`` under a name that is not the member's own."""
    if isinstance(member, types.FunctionType) and is_foreign(member):
        return True
    own = getattr(member, "__qualname__" if "." in name else "__name__", None)
    return callable(member) and own != name
