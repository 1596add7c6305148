from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outside_package import install

from robench.errors import UnknownNameError, UsageError
from robench.registry import (
    Registry,
    identity_of,
    import_target,
    is_target,
    lazily,
    near_misses,
    unknown_name,
)


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
    assert list(registry) == ["red", "dark-red"]
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("package.module:Class", True),
        ("module:Class.method", True),
        ("art:CarliniL2Method", True),
        ("pgd", False),
        ("hf:owner/name", False),
        ("package.module:", False),
        ("file:data/x.npz", False),
        ("package..module:Class", False),
    ],
)
def test_what_is_a_target(name: str, expected: bool) -> None:
    assert is_target(name) is expected


def test_a_written_out_target_needs_trust() -> None:
    import json

    registry = _registry()
    with pytest.raises(UsageError, match=r"colour 'json:loads' is code.*--trust-code"):
        registry.find("json:loads")
    assert registry.find("json:loads", trust_code=True) is json.loads
    assert registry.find("dark-red") == 7
    with pytest.raises(UnknownNameError, match="Did you mean 'red'"):
        registry.find("rad", trust_code=True)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution on the path whose one module adds the colours ``blue`` and ``grey``."""
    points = {"robench.colours": {"blue": "dye_works:BLUE", "grey": "dye_works_that_is_gone:GREY"}}
    install(tmp_path, "dye-works", "1.2", points, {"dye_works.py": "BLUE = 3\n"})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dye_works", raising=False)
    return tmp_path


def _open_registry() -> Registry[Any]:
    registry: Registry[Any] = Registry("colour", "robench.colours")
    registry.add("red", 1, "like a rose")
    return registry


def test_entry_points_add_names_without_an_import(outside: Path) -> None:
    registry = _open_registry()
    assert list(registry) == ["red", "blue", "grey"]
    assert len(registry) == 3
    assert "blue" in registry
    assert registry.summary("blue") == "from dye-works 1.2"
    assert "dye_works" not in sys.modules
    assert registry["blue"] == 3
    with pytest.raises(UnknownNameError, match="Did you mean 'blue'"):
        registry["bluu"]


def test_an_entry_point_that_fails_names_its_distribution(outside: Path) -> None:
    with pytest.raises(UsageError, match=r"'grey' of dye-works 1\.2 cannot be loaded.*is_gone"):
        _open_registry()["grey"]


def test_an_entry_point_cannot_take_a_name(outside: Path) -> None:
    points = {"robench.colours": {"blue": "colorsys:rgb_to_hsv"}}
    install(outside, "other-works", "3", points, {})
    with pytest.raises(UsageError, match=r"colour 'blue' of .*works .* has the same name as that"):
        list(_open_registry())
    registry: Registry[Any] = Registry("colour", "robench.colours")
    registry.add("grey", 1)
    with pytest.raises(UsageError, match=r"'grey' of dye-works 1\.2 .* robench's"):
        list(registry)


def test_a_closed_registry_reads_no_entry_points(outside: Path) -> None:
    assert list(_registry()) == ["red", "dark-red"]


def _identity(folder: Path) -> str:
    code = (
        "from robench.registry import identity_of\n"
        "from works.dyes import dye\n"
        "print(identity_of(dye))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_identity_follows_the_whole_package(tmp_path: Path) -> None:
    package = tmp_path / "works"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "dyes.py").write_text("def dye(): return 1\n")
    first = _identity(tmp_path)
    assert first.startswith("works.dyes:dye ")
    assert _identity(tmp_path) == first
    (package / "vats.py").write_text("DEPTH = 2\n")
    second = _identity(tmp_path)
    assert second != first
    (package / "vats.py").write_text("DEPTH = 3\n")
    assert _identity(tmp_path) not in (first, second)


def test_code_without_a_source_is_never_the_same() -> None:
    namespace: dict[str, Any] = {"__name__": "typed_in"}
    exec("def dye(): return 1", namespace)
    dye = namespace["dye"]
    assert identity_of(dye) != identity_of(dye)
    assert identity_of(Registry) is None


def test_a_packages_names_are_imported_when_they_are_asked_for() -> None:
    find = lazily("importlib", {"util": ("find_spec",), "resources": ("files",)})
    from importlib import resources, util

    assert find("find_spec") is util.find_spec
    assert find("files") is resources.files
    with pytest.raises(AttributeError, match="module 'importlib' has no attribute 'metadata'"):
        find("metadata")
