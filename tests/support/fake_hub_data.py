"""What the Hugging Face package ``datasets`` gives for a repository, without it or a network."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

import pytest


class Image:
    """The feature's type; its name is what counts."""


class ClassLabel:
    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)


class Value:
    pass


class Rows:
    """A map-style ``datasets.Dataset``; an image is decoded when its row is asked for.

    Args:
        columns: name → values; a callable value is called to decode it.
        features: name → type.
        decoded: collects (column, row) of what was decoded.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[Any]],
        features: Mapping[str, Any],
        decoded: list[tuple[str, int]] | None = None,
    ) -> None:
        self.columns, self.features = dict(columns), dict(features)
        self.decoded = [] if decoded is None else decoded

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def _value(self, column: str, row: int) -> Any:
        value = self.columns[column][row]
        if not callable(value):
            return value
        self.decoded.append((column, row))
        return value()

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return [self._value(key, row) for row in range(len(self))]
        return {column: self._value(column, key) for column in self.columns}

    def select_columns(self, names: Sequence[str]) -> Rows:
        return Rows(
            {name: self.columns[name] for name in names},
            {name: self.features[name] for name in names},
            self.decoded,
        )


def serve(
    monkeypatch: pytest.MonkeyPatch, repositories: Mapping[str, Mapping[str, Rows]]
) -> list[dict[str, Any]]:
    """Make ``from datasets import load_dataset`` find repositories; returns the calls."""
    calls: list[dict[str, Any]] = []

    def load_dataset(path: str, name: str | None = None, **options: Any) -> Rows:
        calls.append({"path": path, "name": name, **options})
        if path not in repositories:
            raise ConnectionError(f"Couldn't reach\n'{path}' on the Hub")
        splits = repositories[path]
        if options["split"] not in splits:
            raise ValueError(f'Unknown split "{options["split"]}". Use one of {list(splits)}.')
        return splits[options["split"]]

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


__all__ = ["ClassLabel", "Image", "Rows", "Value", "serve"]
