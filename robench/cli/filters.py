"""Reading a results folder for a command."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from robench.errors import StoreError, UsageError
from robench.models.cards import CARD_NAME, read_card
from robench.results import Store, StoredRecord
from robench.threat_models import parse_eps, parse_norm

__all__ = ["existing_store", "read_by_prefix", "record_name", "select"]

_SHORTEST_PREFIX = 4


def existing_store(folder: Path) -> Store:
    """The store in ``folder``.

    Raises:
        StoreError: there is no such folder; an empty leaderboard would hide a typing error.
    """
    if not folder.is_dir():
        raise StoreError(
            "there is no such results folder",
            where=folder,
            hint="Name it with --results; `robench run` makes one",
        )
    return Store(folder)


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


def select(
    records: Iterable[StoredRecord],
    *,
    dataset: str | None = None,
    norm: str | None = None,
    eps: str | None = None,
    n: int | None = None,
    seed: int | None = None,
) -> list[StoredRecord]:
    """The records that every given filter lets through, in order of model, attack and age.

    Raises:
        UsageError: norm or ε make no sense.
    """
    wanted_norm = None if norm is None else parse_norm(norm)
    wanted_eps = None if eps is None else parse_eps(eps)[0]
    chosen = [
        stored
        for stored in records
        if dataset in (None, stored.record.dataset.name)
        and wanted_norm in (None, stored.record.threat_model.norm)
        and wanted_eps in (None, stored.record.threat_model.eps)
        and n in (None, stored.record.n)
        and seed in (None, stored.record.seed)
    ]
    return sorted(chosen, key=_order)


def _order(stored: StoredRecord) -> tuple[str, str, str, str]:
    record = stored.record
    return (record.model.id, str(record.threat_model), record.attack.name, record.created)
