"""What all records share: immutability, types, their hash, and what a bad one says."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from robench.errors import RobenchError
from robench.text import visible

M = TypeVar("M", bound=BaseModel)

Shown = Annotated[str, AfterValidator(visible)]
"""Text from anywhere that people are shown: no terminal obeys it, wherever it is printed."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _no_word(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise ValueError(f"{value!r:.50} is no number")
    return value


def _no_fraction(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError(f"{value!r} is no whole number")
    return _no_word(value)


def _no_number(value: Any) -> Any:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.50} is neither true nor false")
    return value


def _no_answer(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is no number and no text")
    return value


Whole = Annotated[int, BeforeValidator(_no_fraction)]
"""A whole number that somebody wrote: ``true``, ``3.0`` and ``"3"`` are none."""
Real = Annotated[
    float,
    BeforeValidator(_no_word),
    Field(allow_inf_nan=False),
    AfterValidator(lambda value: value + 0.0),  # -0.0 is 0.0, and hashed as that
]
"""A number that somebody wrote, finite: ``true`` and ``"0.5"`` are none."""
Figure = Annotated[float, BeforeValidator(_no_word)]
"""A figure, which may be undefined (NaN)."""
Answer = Annotated[bool, BeforeValidator(_no_number)]
"""``true`` or ``false``; no word and no number stands for it."""
Entry = Annotated[int | float | str, BeforeValidator(_no_answer)]
"""A number or a text, as it is."""
SchemaVersion = Annotated[Literal[1], BeforeValidator(_no_fraction)]


class Frozen(BaseModel):
    """Immutable; refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_DEEPEST = 20


def _plain(value: Any, place: str = "", depth: int = _DEEPEST) -> Any:
    """``value`` as it is, if its canonical JSON says all of it: then two with one hash are one.

    Raises:
        ValueError: it holds something else, such as a date, whose JSON would be that of its text,
            or an infinity, whose JSON would be null.
    """
    if depth == 0:
        raise ValueError(f"is nested more than {_DEEPEST} deep")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{place}{name!r} is no name: names are text")
            _plain(inner, f"{place}{name}.", depth - 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _plain(inner, f"{place}{number}.", depth - 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place.rstrip('.')} is {value}, not a finite number")
    elif value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(
            f"{place.rstrip('.')} is of type {type(value).__name__}: give text, numbers, true or "
            "false, lists and tables"
        )
    return value


Table = Annotated[dict[str, Any], AfterValidator(_plain)]
"""A free-form table of plain data, such as arguments."""


def canonical_hash(content: Any) -> str:
    """SHA-256 of the canonical JSON form (sorted keys, no spaces) of plain data."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _problems(error: ValidationError) -> str:
    """What is wrong with which field, in one line for people."""
    problems = []
    for detail in error.errors():
        field = ".".join(map(str, detail["loc"]))
        if detail["type"] == "missing":
            problems.append(f"{field} is missing")
        elif detail["type"] == "extra_forbidden":
            problems.append(f"{field} is not a field")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)


def parse(
    kind: type[M],
    content: Any,
    error: type[RobenchError],
    *,
    where: object = None,
    hint: str | None = None,
) -> M:
    """``content``, plain data or a ``kind`` already, as a validated ``kind``.

    Raises:
        RobenchError: it does not follow the schema: an ``error`` that names every wrong field.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as problem:
        raise error(_problems(problem), where=where, hint=hint) from problem


class Flag(Frozen):
    """A reason to doubt the number, as data."""

    name: Shown
    severity: Literal["note", "warning", "severe"]
    evidence: Shown
    """What was seen, with figures."""
    count: int | None = None
