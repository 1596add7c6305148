"""Parts of jobs on disk: a store of their own for each part, in the results folder.

::

    parts/3-of-16/        records, progress and claims of the third of sixteen parts

A part is a record of some of a job's samples under a key of its own, so nothing that reads the
folder's records takes it for the whole. :mod:`robench.evaluation.merging` joins parts.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from robench.errors import StoreError
from robench.records import EvaluationRecord, PartOf
from robench.request import Part
from robench.results.store import Store
from robench.results.stored_record import StoredRecord

_FOLDER = re.compile(r"([1-9][0-9]*)-of-([1-9][0-9]*)")


def part_store(store: Store, part: Part) -> Store:
    """Where a results folder keeps a part of its jobs."""
    return Store(store.folder / "parts" / f"{part.index}-of-{part.count}")


def part_stores(store: Store) -> list[Store]:
    """Those that are there, in order."""
    found = []
    for path in (store.folder / "parts").glob("*-of-*"):
        if match := _FOLDER.fullmatch(path.name):
            index, count = map(int, match.groups())
            found.append((count, index, path))
    return [Store(path) for _, _, path in sorted(found)]


class KeptPart(NamedTuple):
    """A part, and where it lies."""

    store: Store
    stored: StoredRecord
    of: PartOf


@dataclass(frozen=True)
class Division:
    """The parts of one job that were found, in order; they are of one model, data, attack and seed."""

    parts: tuple[KeptPart, ...]

    @property
    def whole(self) -> str:
        """The key of the record that they make."""
        return self.parts[0].of.whole

    @property
    def count(self) -> int:
        """How many there have to be."""
        return self.parts[0].of.count

    @property
    def record(self) -> EvaluationRecord:
        """The first one's."""
        return self.parts[0].stored.record

    @property
    def missing(self) -> list[int]:
        """The parts that were not found, counted from 1."""
        found = {part.of.index for part in self.parts}
        return [index for index in range(1, self.count + 1) if index not in found]

    def __str__(self) -> str:
        record = self.record
        return (
            f"{record.attack.name} on {record.model.id} under {record.threat_model}, "
            f"{self.parts[0].of.dataset.n} samples of {record.dataset.name}, seed {record.seed}"
        )

    def check_complete(self) -> None:
        """Refuse parts that do not make the whole.

        Raises:
            StoreError: one is missing, or there twice; they are named.
        """
        folders: dict[int, Path] = {}
        for part in self.parts:
            other = folders.setdefault(part.of.index, part.store.folder)
            if other != part.store.folder:
                raise StoreError(
                    f"part {part.of.index} of {self.count} is there twice: {self}",
                    where=f"{other} and {part.store.folder}",
                    hint="Leave one of the folders out",
                )
        if self.missing:
            raise StoreError(
                f"{missing_parts(self)} missing: {self}",
                where=self.parts[0].store.folder.parent,
                hint=f"Run it with --shard {self.missing[0]}/{self.count}, or name its folder too",
            )


def divisions(stores: Iterable[Store]) -> list[Division]:
    """What parts the results folders hold, job by job; damaged ones are not counted, but logged."""
    found: dict[tuple[str, int], list[KeptPart]] = defaultdict(list)
    for part in _kept(stores):
        found[part.of.whole, part.of.count].append(part)
    divided = (Division(tuple(sorted(p, key=lambda p: p.of.index))) for p in found.values())
    return sorted(divided, key=lambda d: (d.record.model.id, str(d), d.whole, d.count))


def difference(one: Division, other: Division) -> str | None:
    """In what the jobs of two differ, where the parts look like those of one; None: they do not."""
    mine, theirs = one.record, other.record
    alike = ("model.id", "dataset.name", "attack.name")
    if one.count != other.count or any(_get(mine, n) != _get(theirs, n) for n in alike):
        return None
    told = {
        "seed": (mine.seed, theirs.seed),
        "threat model": (mine.threat_model, theirs.threat_model),
        "precision": (mine.precision, theirs.precision),
        "model": (mine.model.fingerprint[:12], theirs.model.fingerprint[:12]),
        "number of samples": (one.parts[0].of.dataset.n, other.parts[0].of.dataset.n),
        "data": (
            one.parts[0].of.dataset.fingerprint[:12],
            other.parts[0].of.dataset.fingerprint[:12],
        ),
        "robench": tuple(r.environment.versions.get("robench") for r in (mine, theirs)),
    }
    for name, (a, b) in told.items():
        if a != b:
            return f"{name}: {a} and {b}"
    return "the attack's parameters" if mine.attack.identity != theirs.attack.identity else "code"


def _get(record: EvaluationRecord, path: str) -> object:
    value: object = record
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _kept(stores: Iterable[Store]) -> Iterator[KeptPart]:
    seen: set[Path] = set()
    for store in stores:
        for home in part_stores(store):
            if (place := home.folder.resolve()) not in seen:
                seen.add(place)
                for stored in home.records():
                    if (of := stored.record.part) is not None:
                        # Without what reading made of it, which is as large as it is itself.
                        yield KeptPart(home, replace(stored), of)


def missing_parts(division: Division) -> str:
    """``"part 2 of 3 is"``, ``"parts 2, 5 of 16 are"``"""
    numbers = division.missing
    named = ", ".join(map(str, numbers[:20])) + (", …" if len(numbers) > 20 else "")
    if len(numbers) == 1:
        return f"part {named} of {division.count} is"
    return f"parts {named} of {division.count} are"
