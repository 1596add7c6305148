"""Old record layouts → the present one.

A change of :class:`EvaluationRecord`'s fields raises ``RECORD_SCHEMA_VERSION`` and adds one
function here, from the version before it. Reading applies them one after the other, in memory:
files on disk keep their version until they are written again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from robench.errors import CorruptRecordError, StoreError
from robench.records import RECORD_SCHEMA_VERSION

__all__ = ["MIGRATIONS", "Migration", "migrate"]

Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""Takes the record as plain data in version v and returns it in version v + 1."""

MIGRATIONS: dict[int, Migration] = {}
"""Version v → the step to v + 1. Version 1 is the first, so nothing leads to it."""


def migrate(
    record: dict[str, Any],
    *,
    target: int = RECORD_SCHEMA_VERSION,
    migrations: Mapping[int, Migration] | None = None,
) -> dict[str, Any]:
    """Bring a record's plain data to version ``target``.

    Raises:
        CorruptRecordError: there is no version number.
        StoreError: the version is newer than this robench, or too old for it. The record may be
            perfectly good, so this is no reason to set it aside.
    """
    steps = MIGRATIONS if migrations is None else migrations
    version = record.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise CorruptRecordError(f"schema_version is {version!r}, not a number")
    if version > target:
        raise StoreError(
            f"record has schema version {version}; this robench reads up to {target}",
            hint="Upgrade robench, or use another results folder",
        )
    while version < target:
        step = steps.get(version)
        if step is None:
            raise StoreError(
                f"record has schema version {version}, from which no migration to {target} exists",
                hint="Read it with the robench that wrote it, or evaluate again",
            )
        record = {**step(record), "schema_version": version + 1}
        version += 1
    return record
