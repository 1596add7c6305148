"""Groups of options that commands take as one parameter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

__all__ = ["expand_groups"]


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of dataclass type become one option for each of their fields.

    The command line sees the fields, with their annotations and defaults, where the parameter
    stands; the command gets the dataclass.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {}
    expanded: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not (isinstance(kind, type) and is_dataclass(kind)):
            expanded.append(_option(parameter.name, kind, parameter.default))
            continue
        groups[parameter.name] = kind
        inside = get_type_hints(kind, include_extras=True)
        expanded += [
            _option(field.name, inside[field.name], field.default) for field in fields(kind)
        ]

    @functools.wraps(command)
    def flat(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
        command(**given)

    flat.__signature__ = inspect.Signature(expanded)  # type: ignore[attr-defined]
    flat.__annotations__ = {option.name: option.annotation for option in expanded}
    return flat


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
