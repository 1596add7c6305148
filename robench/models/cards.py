"""``card.toml`` ↔ :class:`~robench.records.ModelCard`. Imports no torch."""

from __future__ import annotations

import os
import pickle
import tomllib
from collections.abc import Hashable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import tomli_w

from robench.errors import CardError
from robench.files import atomic_write, read_text
from robench.models.zoo_folders import CARD_NAME
from robench.records import ModelCard, parse


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read and validate a card.

    Raises:
        CardError: the file cannot be read, is no TOML, or breaks the schema; the message names
            the file and every wrong field.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise CardError("there is no such card", where=path) from error
    except (OSError, ValueError) as error:
        raise CardError(f"cannot be read: {error}", where=path) from error
    return parse_card(text, where=path)


def parse_card(text: str, *, where: Hashable = CARD_NAME) -> ModelCard:
    """Validate the text of a card; ``where`` names it in errors.

    Raises:
        CardError: the text is no TOML or breaks the schema.
    """
    # A copy, as a builder may change the arguments that its card gives it. Each of them anew from
    # bytes, in half the time of a deep copy.
    card: ModelCard = pickle.loads(_parsed(text, where))
    return card


@lru_cache(maxsize=128)
def _parsed(text: str, where: Hashable) -> bytes:
    """Kept, as a command looks through all cards of the zoo several times."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError(f"is not valid TOML: {error}", where=where) from error
    hint = "`robench zoo show` prints a valid card"
    return pickle.dumps(parse(ModelCard, content, CardError, where=where, hint=hint))


def format_card(card: ModelCard) -> str:
    """The card as TOML, defaults left out; :func:`parse_card` gives back an equal card.

    Free-form tables (``arguments``, ``recipe``) lose keys whose value is None, which TOML cannot
    express.

    Raises:
        CardError: a free-form table holds something that is not plain data.
    """
    content: dict[str, Any] = {"schema_version": card.schema_version}
    # Python mode, because JSON has no NaN, which a figure may be, and would make it null.
    content.update(card.model_dump(exclude_defaults=True))
    try:
        return tomli_w.dumps(_without_none(content))
    except TypeError as error:
        raise CardError(str(error), where=card.id) from error


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_card(card: ModelCard, path: str | os.PathLike[str]) -> Path:
    """Write ``card`` to ``path``, whole or not at all. Missing folders are made.

    Raises:
        StoreError: the folder cannot be written.
        CardError: the card holds other than plain data.
    """
    path = Path(path)
    atomic_write(path, format_card(card).encode())
    return path
