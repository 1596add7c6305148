"""What all records share: immutability, their hash, and what a bad one says."""

import hashlib
import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from robench.errors import RobenchError
from robench.text import visible

M = TypeVar("M", bound=BaseModel)

Shown = Annotated[str, AfterValidator(visible)]
"""Text from anywhere that people are shown: no terminal obeys it, wherever it is printed."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Frozen(BaseModel):
    """Immutable; refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
