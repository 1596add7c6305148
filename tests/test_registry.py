from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.errors import UnknownNameError, UsageError
from robench.registry import Registry, import_target, near_misses, unknown_name


def _registry() -> Registry[Any]:
    registry: Registry[Any] = Registry("colour")
    registry.add("red", "colorsys:rgb_to_hsv", "like a rose")
    registry.add("dark-red", 7, "like wine")
    return registry


def test_targets_are_imported_when_they_are_asked_for() -> None:
    registry: Registry[Any] = Registry("module")
    sys.modules.pop("this_does_not_exist_yet", None)
    registry.add("broken", "this_does_not_exist_yet:thing")
    assert list(registry) == ["broken"]
    assert "broken" in registry
    with pytest.raises(UsageError, match="cannot import 'this_does_not_exist_yet'"):
        registry["broken"]


def test_names_objects_and_summaries() -> None:
    import colorsys

    registry = _registry()
    assert registry["red"] is colorsys.rgb_to_hsv
    assert registry["red"] is registry["red"]
    assert registry["dark-red"] == 7
    assert list(registry) == ["dark-red", "red"]
    assert len(registry) == 2
    assert "blue" not in registry
    assert 3 not in registry
    assert registry.summary("red") == "like a rose"


def test_collisions_are_refused() -> None:
    registry = _registry()
    with pytest.raises(UsageError, match="colour 'red' is already registered"):
        registry.add("red", 1)
    assert registry.summary("red") == "like a rose"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Red", "Did you mean 'red'"),
        ("dark_red", "Did you mean 'dark-red'"),
        ("drak-red", "'dark-red'"),
        ("zzzzzz", "Known: dark-red, red"),
    ],
)
def test_unknown_names_list_near_misses(name: str, hint: str) -> None:
    registry = _registry()
    for ask in (registry.__getitem__, registry.summary):
        with pytest.raises(UnknownNameError, match=f"unknown colour '{name}'.*{hint}"):
            ask(name)


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownNameError, match="No colour is registered"):
        Registry("colour")["red"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("json", "is not an import target"),
        ("json:", "is not an import target"),
        (":dumps", "is not an import target"),
        ("no.such.module:thing", "cannot import"),
        ("json:dump_s", "Did you mean 'dumps'"),
        ("json:JSONDecoder.decod", "Did you mean 'decode'"),
    ],
)
def test_bad_targets_are_explained(target: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        import_target(target)


def test_targets_may_be_nested() -> None:
    import json

    assert import_target("json:JSONDecoder.decode") is json.JSONDecoder.decode


@settings(deadline=None)
@given(st.lists(st.text("abc-_", min_size=1, max_size=6), unique=True), st.text("abcABC-_"))
def test_near_misses_are_known_names(known: list[str], name: str) -> None:
    close = near_misses(name, known)
    assert set(close) <= set(known)
    assert len(close) <= 3
    assert str(unknown_name("thing", name, known)).startswith(f"unknown thing {name!r}")
