"""Finding stored records by what a user calls them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from robench.errors import UsageError
from robench.models.cards import CARD_NAME, read_card
from robench.results import RecordFilter, Store, StoredRecord

__all__ = ["in_order", "read_by_prefix", "record_name"]

_SHORTEST_PREFIX = 4


def record_name(model: str) -> str:
    """What records call a model: a card's path → its id; anything else as it is.

    Raises:
        CardError: the card breaks the schema.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        path = path / CARD_NAME
    return read_card(path).id if path.name == CARD_NAME and path.is_file() else model


def read_by_prefix(store: Store, prefix: str) -> StoredRecord:
    """The record whose key starts with ``prefix``.

    Raises:
        UsageError: the prefix is short, or fits no key or several.
        StoreError: the record cannot be read.
    """
    if len(prefix) < _SHORTEST_PREFIX:
        raise UsageError(f"{prefix!r} is too short for a key", hint="Give 4 digits or more")
    known = store.keys()
    keys = [key for key in known if key.startswith(prefix.lower())]
    if len(keys) != 1:
        what = "no record has" if not keys else f"{len(keys)} records have"
        raise UsageError(
            f"{what} a key that starts with {prefix!r}",
            where=store.folder,
            hint="`robench results list` prints the keys",
        )
    return store.read(keys[0])


def in_order(records: Iterable[StoredRecord], wanted: RecordFilter) -> list[StoredRecord]:
    """The records that are wanted, in order of model, threat model, attack and age."""
    return sorted((stored for stored in records if wanted.matches(stored.record)), key=_order)


def _order(stored: StoredRecord) -> tuple[str, str, str, str]:
    record = stored.record
    return (record.model.id, str(record.threat_model), record.attack.name, record.created)
