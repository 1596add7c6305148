"""Named things that are imported only when they are asked for.

One generic class serves attacks, architectures, data sets, defenses and suites: a name maps to
a *lazy target* ``"package.module:attribute"``. Listing names imports nothing, so the command
line answers at once; asking for an unknown name lists near misses.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from robench.errors import UnknownNameError, UsageError

__all__ = ["Registry", "import_target", "near_misses"]

T = TypeVar("T")


def near_misses(name: str, known: Iterator[str] | list[str], n: int = 3) -> list[str]:
    """Up to ``n`` known names that look like ``name``, best first."""
    names = list(known)
    folded = {candidate.casefold().replace("_", "-"): candidate for candidate in names}
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
    try:
        value: object = importlib.import_module(module_name)
    except ImportError as error:
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


class Registry(Generic[T]):
    """Names → lazily imported objects of one kind.

    Args:
        kind: what the names stand for, as it should read in an error ("attack").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
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

    def __getitem__(self, name: str) -> T:
        if name not in self._targets:
            raise unknown_name(self.kind, name, list(self._targets))
        target = self._targets[name]
        if isinstance(target, str):
            target = cast(T, import_target(target))
            self._targets[name] = target
        return target

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._targets))

    def __len__(self) -> int:
        return len(self._targets)

    def summary(self, name: str) -> str:
        """One line about ``name``, known without importing it."""
        if name not in self._targets:
            raise unknown_name(self.kind, name, list(self._targets))
        return self._summaries[name]
