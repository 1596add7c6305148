"""One rule for names, the same in every room.

A name is one of three things, looked for in this order:

1. a name that the room's ``catalogue.py`` registers, as an object or as a lazy target
   ``"package.module:attribute"``;
2. an entry point of the room's group (``robench.attacks``, ``robench.metrics``, …) of any
   installed distribution;
3. ``package.module:attribute``, written out.

Listing names imports nothing. An unknown name lists near misses; two things under one name are
refused. What is written out is imported only where whoever asks is trusted: a file of somebody
else's must not run code unasked, while an installed distribution was installed on purpose.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from robench.errors import UnknownNameError, UsageError
from robench.trust import how_to_trust

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def near_misses(name: str, known: Iterator[str] | list[str], n: int = 3) -> list[str]:
    """Up to ``n`` known names that look like ``name``, best first."""
    folded = {candidate.casefold().replace("_", "-"): candidate for candidate in known}
    close = difflib.get_close_matches(
        name.casefold().replace("_", "-"), list(folded), n=n, cutoff=0.5
    )
    return [folded[candidate] for candidate in close]


def unknown_name(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """The error for a name that is not among ``known``, with near misses or the whole list."""
    close = near_misses(name, known)
    if close:
        hint = f"Did you mean {' or '.join(repr(c) for c in close)}?"
    elif known:
        hint = f"Known: {', '.join(sorted(known))}"
    else:
        hint = f"No {kind} is registered"
    return UnknownNameError(f"unknown {kind} {name!r}", hint=hint)


def is_target(name: str) -> bool:
    """Whether ``name`` has the form ``package.module:attribute``."""
    return _TARGET.fullmatch(name) is not None


def names_code(name: str) -> bool:
    """Whether ``name`` is ``package.module:attribute`` with a dot before the colon, which no name
    with an argument (``name:argument``) has."""
    return is_target(name) and "." in name.partition(":")[0]


def untrusted_target(
    kind: str, target: str, where: object = None, file: Path | None = None
) -> UsageError:
    """The error where importing ``target`` was asked for by somebody who is not trusted, as by the
    author of ``file``."""
    return UsageError(
        f"the {kind} {target!r} is code that would be imported and run",
        where=where,
        hint=f"{how_to_trust(file)}; or install its package with an entry point and use that name",
    )


def look_in_working_folder() -> None:
    """From now on modules are also found where ``python -m robench`` was started, if it was."""
    folder = sys.modules["robench"].working_folder
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)


def is_module(name: str) -> bool:
    """Whether a module of this name, without a dot, could be imported; nothing is run."""
    folder = sys.modules["robench"].working_folder
    try:
        return find_spec(name) is not None or (
            folder is not None and PathFinder.find_spec(name, [folder]) is not None
        )
    except ValueError:  # running, without a file of its own
        return True


def import_target(target: str) -> object:
    """Import ``"package.module:attribute"``.

    Raises:
        UsageError: the text has no colon, the module does not import, or lacks the attribute.
    """
    module_name, colon, attribute = target.partition(":")
    if not (colon and module_name and attribute):
        raise UsageError(
            f"{target!r} is not an import target", hint="Write it as package.module:callable"
        )
    look_in_working_folder()
    try:
        value: object = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # Foreign code may raise anything.
        raise UsageError(f"cannot import {module_name!r}: {error}", where=target) from error
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            close = near_misses(part, [n for n in dir(value) if not n.startswith("_")])
            hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else None
            raise UsageError(
                f"{module_name!r} has no attribute {attribute!r}", where=target, hint=hint
            ) from error
    return value


def lazily(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """A package's ``__getattr__``: its names are imported when they are first asked for.

    ``homes`` are its modules, each with the names that are in it.
    """

    def find(name: str) -> object:
        for home, names in homes.items():
            if name in names:
                return getattr(importlib.import_module(f"{package}.{home}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def identity_of(target: object) -> str | None:
    """What decides the numbers of a class or function from outside robench.

    Its name with a hash of the source of the whole top-level package it is in, or of its file. A
    record's key holds it, so that a number made with other code is never taken for this one's.

    Returns:
        ``package.module:Name sha256``; None for robench's own, which change with its revision of
        results. What has no source, such as a class typed in, is never the same twice.
    """
    while isinstance(target, functools.partial):
        target = target.func
    if not hasattr(target, "__qualname__"):
        target = type(target)
    module = str(getattr(target, "__module__", ""))
    name = f"{module}:{getattr(target, '__qualname__', '')}"
    top = module.partition(".")[0]
    if top == "robench":
        return None
    digest = source_hash(top if hasattr(sys.modules.get(top), "__path__") else module)
    return f"{name} {digest or uuid.uuid4().hex}"


def installed_versions(*distributions: str) -> dict[str, str]:
    """The versions of those ``distributions`` that are installed, by name."""
    # Takes a moment to import, and names are looked up without it.
    from importlib.metadata import PackageNotFoundError

    found = {}
    for name in distributions:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = _version(name)
    return found


@functools.cache
def _version(distribution: str) -> str:
    """Looked up once, as every record says it: folders are searched and a file is parsed."""
    from importlib.metadata import version

    return version(distribution)


def source_hash(*modules: str) -> str | None:
    """SHA-256 of the source of modules, packages with all that is in them.

    Nothing is imported: where a top-level module is not, its source is that which would be.

    Returns:
        None where a module has no file.
    """
    suffixes = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
    digest = hashlib.sha256()
    for name in modules:
        folders, file = _source_of(name)
        found: list[tuple[str, Path]] = []
        for folder in folders:
            files = (path for path in folder.rglob("*") if path.name.endswith(suffixes))
            found += [(path.relative_to(folder).as_posix(), path) for path in files]
        if not found and file is not None:
            found = [("", Path(file))]
        if not found or not all(path.is_file() for _, path in found):  # a script from a pipe
            return None
        for place, path in sorted(found):
            content = path.read_bytes()
            digest.update(f"{place}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _source_of(name: str) -> tuple[list[Path], str | None]:
    """A package's folders, and a module's file."""
    module = sys.modules.get(name)
    if module is not None:
        return list(map(Path, getattr(module, "__path__", ()))), getattr(module, "__file__", None)
    spec = None if "." in name else PathFinder.find_spec(name)
    if spec is None:
        return [], None
    return list(map(Path, spec.submodule_search_locations or ())), spec.origin


class Registry(Generic[T]):
    """Names → lazily imported objects of one kind.

    Args:
        kind: what the names stand for, as it should read in an error ("attack").
        group: the entry points that add names from outside, such as ``robench.attacks``; None:
            nobody can.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._targets: dict[str, str | T] = {}
        self._summaries: dict[str, str] = {}

    def add(self, name: str, target: str | T, summary: str = "") -> None:
        """Register ``target``, an object or ``"package.module:attribute"``, under ``name``.

        Raises:
            UsageError: the name is taken; two things under one name would hide each other.
        """
        if name in self._targets:
            raise UsageError(f"{self.kind} {name!r} is already registered")
        self._targets[name] = target
        self._summaries[name] = summary

    @functools.cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        """What installed distributions add, read when a name is not one of the room's own."""
        # Takes a moment to import, and most names are robench's own.
        from importlib.metadata import entry_points

        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group) if self.group else ():
            if point.name in self._targets or point.name in found:
                rival = (
                    f"that of {_owner(found[point.name])}" if point.name in found else "robench's"
                )
                raise UsageError(
                    f"{self.kind} {point.name!r} of {_owner(point)} has the same name as {rival}",
                    where=f"entry point {self.group}",
                    hint="Rename it, or uninstall one of the two",
                )
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise unknown_name(self.kind, name, list(self))
        if name not in self._targets:
            point = self._entry_points[name]
            try:
                self._targets[name] = cast(T, import_target(point.value))
            except UsageError as error:
                raise UsageError(
                    f"{self.kind} {name!r} of {_owner(point)} cannot be loaded: {error}",
                    hint=f"Mend or uninstall {_owner(point)}",
                ) from error
        target = self._targets[name]
        if isinstance(target, str):
            target = cast(T, import_target(target))
            self._targets[name] = target
        return target

    def find(self, name: str, *, trust_code: bool = False) -> T:
        """What ``name`` stands for: a registered name, an entry point's, or, if the code is
        trusted, a target that is written out, ``package.module:attribute``.

        Raises:
            UnknownNameError: no such name; near misses are listed.
            UsageError: a target without trust, or one that cannot be imported.
        """
        if name in self or not is_target(name):
            return self[name]
        if not trust_code:
            raise untrusted_target(self.kind, name)
        return cast(T, import_target(name))

    def __contains__(self, name: object) -> bool:
        return name in self._targets or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        """The room's own names in the order of its catalogue, then those from outside."""
        outside = sorted(self._entry_points)
        return iter(dict.fromkeys([*self._summaries, *outside]))

    def __len__(self) -> int:
        return len({*self._summaries, *self._entry_points})

    def summary(self, name: str) -> str:
        """One line about ``name``, known without importing it."""
        if name not in self:
            raise unknown_name(self.kind, name, list(self))
        if name in self._summaries:
            return self._summaries[name]
        return f"from {_owner(self._entry_points[name])}"


def _owner(point: EntryPoint) -> str:
    """The distribution that an entry point is from, with its version."""
    if point.dist is None:
        return "an unnamed distribution"
    return f"{point.dist.name} {point.dist.version}"
