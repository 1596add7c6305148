"""``robench.toml`` in the working folder: defaults of options, which the command line overrides.

Whoever clones a repository has its ``robench.toml``, so it is a stranger's file: it holds numbers, words
and paths inside the folder, and only for the options listed here. None of them names code, trusts
code or a pickle, fetches anything or reads and writes outside the folder. What it sets is said
whenever a command takes it, as other defaults give other numbers.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from robench.errors import UsageError
from robench.files import read_text
from robench.registry import unknown_name

FILE_NAME = "robench.toml"

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RADII = re.compile(r"[0-9./,eE+-]+")
_DEVICES = re.compile(r"[a-z]+(:[a-z0-9]+)?(,[a-z]+(:[a-z0-9]+)?)*")
_COLUMNS = re.compile(r"[A-Za-z0-9_,. -]+")


def _text(pattern: re.Pattern[str], what: str) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and pattern.fullmatch(value) else f"is no {what}"

    return check


def _whole(value: Any) -> str | None:
    return None if type(value) is int else "is no whole number"


def _number(value: Any) -> str | None:
    return None if type(value) in (int, float) else "is no number"


def _answer(value: Any) -> str | None:
    return None if isinstance(value, bool) else "is neither true nor false"


def _inside(value: Any) -> str | None:
    """A path that leads nowhere but into the folder."""
    if not isinstance(value, str) or not value or "\\0" in value or value.startswith("~"):
        return "is no path inside this folder"
    pure, foreign = PurePosixPath(value), PureWindowsPath(value)
    if pure.is_absolute() or foreign.drive or foreign.root or ":" in value:
        return "is no path inside this folder"
    if ".." in (*pure.parts, *foreign.parts):
        return "is no path inside this folder"
    here = Path.cwd().resolve()
    # A link that came with the folder may lead anywhere.
    return None if (here / value).resolve().is_relative_to(here) else "leads out of this folder"


_name = _text(_WORD, "plain name")

CHECKS: Mapping[str, Callable[[Any], str | None]] = {
    **dict.fromkeys(("n", "seed", "draws", "batch_size", "workers", "digits"), _whole),
    **dict.fromkeys(("margin", "level"), _number),
    **dict.fromkeys(("save_adversarial", "trace", "plots", "intervals", "validate"), _answer),
    **dict.fromkeys(("norm", "goal", "targets", "precision", "split", "form"), _name),
    **dict.fromkeys(("results", "policy", "suite", "dataset"), _inside),
    "eps": _text(_RADII, "radius such as '8/255'"),
    "device": _text(_DEVICES, "device"),
    "columns": _text(_COLUMNS, "list of columns"),
}
"""Option, as commands call its value, → what is wrong with a value; None: nothing."""

_SPELLED = {"format": "form"}
"""Name in the file, where it is not the parameter's."""

EVERYWHERE = ("results", "device", "precision", "batch_size", "workers")
"""Options that mean the same in all commands that have them, and may stand outside a table."""


def read_defaults(folder: Path) -> dict[str, Any]:
    """What the folder's file says: options for all commands, and a table for each command; empty
    where there is no file.

    Raises:
        UsageError: it cannot be read, is no TOML, or says something that it may not.
    """
    path = folder / FILE_NAME
    try:
        content = tomllib.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot be read: {error}", where=path) from error
    for name, value in content.items():
        if isinstance(value, dict):
            for inner, given in value.items():
                _check(path, f"{name}.{inner}", inner, given, CHECKS)
        else:
            _check(path, name, name, value, {k: CHECKS[k] for k in EVERYWHERE})
    return content


def options_of(group: Any) -> dict[str, dict[str, bool]]:
    """Every command of the program, as ``run`` or ``results list``, with the parameters it has and
    whether they can be given several times."""
    found: dict[str, dict[str, bool]] = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        each = {name: command} if inner is None else {f"{name} {k}": v for k, v in inner.items()}
        for full, own in each.items():
            found[full] = {p.name: getattr(p, "multiple", False) for p in own.params}
    return found


def for_command(
    content: Mapping[str, Any], command: str, options: Mapping[str, Mapping[str, bool]]
) -> dict[str, Any]:
    """The defaults of one command's parameters.

    Args:
        content: as :func:`read_defaults` gives it.
        command: its name.
        options: as :func:`options_of` gives them.

    Raises:
        UnknownNameError: there is no such command, or the command has no such option.
    """
    known = sorted(set(options[command]) & CHECKS.keys())
    found = {name: content[name] for name in EVERYWHERE if name in content and name in known}
    for name, table in content.items():
        if isinstance(table, dict) and name not in options:
            raise unknown_name(f"command in {FILE_NAME}", name, sorted(options))
    for name, value in content.get(command, {}).items():
        parameter = _SPELLED.get(name, name)
        if parameter not in known:
            raise unknown_name(f"option of [{command}] in {FILE_NAME}", name, known)
        found[parameter] = value
    return found


def _check(
    path: Path,
    place: str,
    name: str,
    value: Any,
    checks: Mapping[str, Callable[[Any], str | None]],
) -> None:
    check = checks.get(_SPELLED.get(name, name))
    if check is None:
        known = ", ".join(sorted(checks))
        raise UsageError(
            f"{place!r} is nothing that this file may set",
            where=path,
            hint=f"It may set {known}"
            + ("" if checks is CHECKS else "; others in a table of their command, as [run]"),
        )
    if (wrong := check(value)) is not None:
        raise UsageError(f"{place} = {value!r:.60} {wrong}", where=path)
