"""Results folders made by hand, as formats get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from record_factory import make_record, make_samples

from robench.exports import Choices, Material
from robench.results import RecordFilter, Store, StoredRecord


def material(
    folder: Path,
    *records: tuple[Any, ...],
    kept: bool = False,
    models: tuple[str, ...] = (),
    goal: str | None = None,
    **choices: Any,
) -> Material:
    """A record for each (model, attack, letters[, what :func:`make_record` takes]), in memory, or
    ``kept`` in a folder."""
    store, found = Store(folder / "results"), []
    for model, attack, letters, *others in records:
        options = dict(*others)
        values = options.pop("values", None)
        samples = make_samples(letters, values=values)
        record = make_record(samples, model=model, attack=attack, **options)
        if kept:
            store.write(record, samples)
        found.append(StoredRecord.of(record, samples))
    wanted = RecordFilter(goal=goal)
    return Material(store, wanted, models, Choices(**choices), given=tuple(found))


__all__ = ["material"]
