"""``card.toml`` ↔ :class:`~robench.records.ModelCard`. Imports no torch."""

from __future__ import annotations

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robench.errors import CardError
from robench.models.toml_writer import dumps
from robench.records import ModelCard, validation_problems

__all__ = ["CARD_NAME", "format_card", "parse_card", "read_card", "write_card"]

CARD_NAME = "card.toml"


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read and validate a card.

    Raises:
        CardError: the file cannot be read, is no TOML, or breaks the schema; the message names
            the file and every wrong field.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise CardError("there is no such card", where=path) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"cannot be read: {error}", where=path) from error
    return parse_card(text, where=path)


def parse_card(text: str, *, where: object = CARD_NAME) -> ModelCard:
    """Validate the text of a card; ``where`` names it in errors.

    Raises:
        CardError: the text is no TOML or breaks the schema.
    """
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise CardError(f"is not valid TOML: {error}", where=where) from error
    try:
        return ModelCard.model_validate(content)
    except ValidationError as error:
        raise CardError(
            validation_problems(error), where=where, hint="`robench zoo show` prints a valid card"
        ) from error


def format_card(card: ModelCard) -> str:
    """The card as TOML, defaults left out; :func:`parse_card` gives back an equal card.

    Free-form tables (``arguments``, ``recipe``) lose keys whose value is None, which TOML cannot
    express.

    Raises:
        CardError: a free-form table holds something that is not plain data.
    """
    content: dict[str, Any] = {"schema_version": card.schema_version}
    # Python mode, because JSON has no infinities and would make them null.
    content.update(card.model_dump(exclude_defaults=True))
    try:
        return dumps(content)
    except TypeError as error:
        raise CardError(str(error), where=card.id) from error


def write_card(card: ModelCard, path: str | os.PathLike[str]) -> Path:
    """Write ``card`` to ``path``, whole or not at all. Missing folders are made.

    Raises:
        CardError: the folder cannot be written, or the card holds other than plain data.
    """
    path = Path(path)
    text = format_card(card)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".card-", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            # mkstemp makes private files; a card is as readable as its folder lets it be.
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise CardError(f"cannot be written: {error}", where=path) from error
    return path
