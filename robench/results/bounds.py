"""Bounds on disk: one JSON each beside the records, with its own checksum.

::

    bounds/abcd….json     how far no perturbation in a ball can push the margins of a model's samples

No sample can be verified and broken at once: where records and bounds say so, one of them is wrong,
and so may be every number beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from robench.errors import ContradictionError, CorruptRecordError, StoreError
from robench.records import Bounds
from robench.results.documents import read_document_of, write_document
from robench.results.finds import SamplesInBall, found_in, has_finds, is_about
from robench.results.store import Store
from robench.results.stored_record import StoredRecord

log = logging.getLogger("robench.results")


def write_bounds(store: Store, bounds: Bounds) -> Path:
    """Keep bounds, in place of earlier ones with their key.

    Raises:
        StoreError: the folder cannot be written.
    """
    return write_document(_folder(store), "bounds", bounds)


def bounds_files(store: Store) -> list[Path]:
    """The files, in order of keys."""
    return sorted(_folder(store).glob("*.json"))


def known_bounds(store: Store) -> list[Bounds]:
    """All of a results folder, in order of keys; damaged ones are logged as warnings, by name."""
    found = []
    for path in bounds_files(store):
        try:
            found.append(read_document_of(Bounds, path, "bounds"))
        except StoreError as error:
            log.warning("left out: %s", error)
    return found


def find_bounds(store: Store, key: str) -> Bounds | None:
    """The bounds of ``key``, if they are there and sound."""
    path = _folder(store) / f"{key}.json"
    if not path.is_file():
        return None
    try:
        return read_document_of(Bounds, path, "bounds")
    except CorruptRecordError:
        return None  # they are made again


def check_bounds(records: Iterable[StoredRecord], bounds: Iterable[Bounds]) -> None:
    """Hold finds against bounds.

    Raises:
        ContradictionError: a sample is verified and was broken in the very ball, or in a smaller one.
    """
    known = [(SamplesInBall.of_bounds(item), item) for item in bounds]
    if not known:
        return
    for stored in records:
        for samples, item in known:
            if not (is_about(stored.record, samples) and has_finds(stored.record)):
                continue
            verified = np.array([sample.verified for sample in item.samples])
            both = verified & found_in(stored, samples)
            if both.any():
                raise ContradictionError(
                    f"{both.sum()} samples are verified by {item.method} under {item.threat_model} "
                    f"and broken by {stored.record.attack.name} under "
                    f"{stored.record.threat_model}, first {samples.sample_ids[both.argmax()]!r}",
                    where=item.model.id,
                    hint="This is a fault of robench: report it with the results folder",
                )


def _folder(store: Store) -> Path:
    return store.folder / "bounds"
