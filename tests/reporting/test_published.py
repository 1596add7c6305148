"""A folder's tables, figures and page are made anew where they would come out otherwise, and only there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invoke_cli import invoke
from record_factory import make_record, make_samples

from robench.files import atomic_write
from robench.reporting import publish as publishing
from robench.reporting import published
from robench.reporting.published import NAME, Published
from robench.results import Store
from robench.results.clean_samples import CleanSamples, keep_clean_samples


def put(store: Store, model: str, letters: str, **about: Any) -> Path:
    """The record's JSON."""
    samples = make_samples(letters)
    path = store.write(make_record(samples, model=model, **about), samples).path
    assert path is not None
    return path


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One for each time that a page was made; its figures are files without a picture."""
    made: list[str] = []

    def draw(_: Any, store: Store) -> list[Path]:
        figures = [store.folder / f"plots/group/one.{kind}" for kind in ("png", "svg")]
        for path in figures:
            atomic_write(path, b"a figure")
        return figures

    monkeypatch.setattr(publishing, "_figures", draw)

    def build(*_: Any, **__: Any) -> str:
        made.append("")
        return "the page"

    monkeypatch.setattr(publishing, "build_page", build)
    return made


@pytest.fixture
def store(tmp_path: Path, pages: list[str]) -> Store:
    """A published folder of two models."""
    store = Store(tmp_path / "results")
    put(store, "one", "SSBC")
    put(store, "two", "SBBC")
    publishing.publish(store)
    return store


@pytest.fixture
def publish(store: Store, pages: list[str]) -> Callable[[], int]:
    """Publishes, and says how often the page was made for it; all files are there whatever it did."""

    def once() -> int:
        before = len(pages)
        files = publishing.publish(store).files
        assert files[0] == store.folder / "leaderboard.csv"
        assert len(set(files)) == len(files) > 5
        assert all(path.is_file() for path in files)
        return len(pages) - before

    assert once() == 0
    return once


def test_only_what_would_come_out_otherwise_is_made(
    store: Store, publish: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, "three", "BBBC")
    assert [publish(), publish()] == [1, 0]
    samples = CleanSamples.of(["a"], np.zeros((1, 1, 4, 4)))
    keep_clean_samples(store, "0" * 64, samples)
    assert [publish(), publish()] == [1, 0]
    board = store.folder / "leaderboard.csv"
    content = board.read_bytes()
    board.write_bytes(content.replace(b"one", b"own"))
    assert publish() == 1
    assert board.read_bytes() == content
    next((store.folder / "plots").rglob("*.png")).unlink()
    assert publish() == 1
    with monkeypatch.context() as patch:
        patch.setattr("robench.reporting.published.installed_versions", lambda *_: {"pandas": "9"})
        assert publish() == 1
    assert publish() == 1


def test_what_is_no_memory_of_ours_is_passed_over(store: Store, publish: Callable[[], int]) -> None:
    told = json.loads((store.folder / NAME).read_text())
    others = [
        "",
        "[]",
        '{"made_of": null, "files": {}}',
        '{"files": {"../x": ""}}',
        "[" * 9999,
        json.dumps(told | {"made_of": None}),
        json.dumps(told | {"board": {"text": "pgd-at is robust", "content": {}}}),
        json.dumps(told | {"checksum": ""}),
    ]
    for other in others:
        (store.folder / NAME).write_text(other)
        assert Published(store.folder).find() is None, other
    assert [publish(), publish()] == [1, 0]


def test_nothing_that_a_terminal_obeys_is_printed_from_a_file(
    store: Store, publish: Callable[[], int]
) -> None:
    path = store.folder / NAME
    told = json.loads(path.read_text())
    told.pop("checksum")
    told["board"]["text"] += "\x1b[2J"
    path.write_text(json.dumps(told | {"checksum": published._checksum(told)}))
    assert publish() == 1


def added(store: Store) -> None:
    put(store, "three", "BBBC")


def removed(store: Store) -> None:
    store.delete(store.keys()[0])


def changed(store: Store) -> None:
    put(store, "one", "SSBC", seconds=2.0)


def damaged(store: Store) -> None:
    path = next(store.folder.glob("records/*/*.parquet"))
    path.write_bytes(path.read_bytes().replace(b"toy", b"tox", 1))


def touched_arrays(store: Store) -> None:
    samples = make_samples("SSBC")
    stored = store.write(make_record(samples, model="one"), samples, arrays={"a": np.zeros(4)})
    publishing.publish(store)
    assert Published(store.folder).find() is not None
    assert stored.arrays_path is not None
    stored.arrays_path.write_bytes(stored.arrays_path.read_bytes())
    os.utime(stored.arrays_path, ns=(1, 1))


@pytest.mark.parametrize("change", [added, removed, changed, damaged, touched_arrays])
def test_another_record_is_another_leaderboard(
    change: Callable[[Store], None], store: Store, publish: Callable[[], int]
) -> None:
    change(store)
    assert Published(store.folder).find() is None
    # A damaged record is told of every time.
    assert [publish(), publish()] == [1, 1 if change is damaged else 0]


def test_other_code_and_other_cards_make_another_page(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, card = tmp_path / "robench", tmp_path / "a/b/c/card.toml"
    (code / "reporting").mkdir(parents=True)
    script = code / "reporting/board.js"
    monkeypatch.setattr(published, "__file__", str(code / "reporting/published.py"))
    card.parent.mkdir(parents=True)
    card.write_text("")
    publication = publishing.publish(store)

    def is_known() -> bool:
        published._code.cache_clear()
        known = Published(store.folder, [card]).find() == publication
        Published(store.folder, [card]).remember(publication)
        assert Published(store.folder, [card]).find() == publication
        return known

    for content in ("one", "two"):
        for path in (script, card):
            path.write_text(content)
            assert not is_known()
            assert is_known()
    script.rename(script.with_name("other.js"))
    assert not is_known()
    assert Published(store.folder).find() is None
    published._code.cache_clear()


def test_what_came_meanwhile_is_not_passed_over(store: Store) -> None:
    before = Published(store.folder)
    publication = before.find()
    assert publication is not None
    (store.folder / NAME).unlink()
    put(store, "three", "BBBC")
    before.remember(publication)
    assert not (store.folder / NAME).exists()


def test_the_command_says_the_same_and_leaves_the_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (store.folder / NAME).unlink()
    made = invoke("leaderboard")
    assert (made.code, len(pages)) == (0, 2)
    files = {path: path.stat() for path in store.folder.rglob("*")}
    monkeypatch.setattr(publishing, "publish", None)
    assert invoke("leaderboard") == made
    assert invoke("leaderboard", "--json").json["leaderboard"][0]["model"] == "one"
    written = invoke("leaderboard", "--no-plots", "--csv", "mine.csv")
    assert written.out == made.out
    assert (tmp_path / "mine.csv").read_bytes() == (store.folder / "leaderboard.csv").read_bytes()
    assert {path: path.stat() for path in store.folder.rglob("*")}.keys() == files.keys()
    assert all(path.stat().st_mtime_ns == files[path].st_mtime_ns for path in files)
    # Another option is another table, and another folder has to be looked at.
    assert "three" not in invoke("leaderboard", "--seed", 1).out
    assert invoke("leaderboard", "--seed", 1).out == "No results.\n"
    assert "one" not in invoke("leaderboard", "--suite", "quick", "--together").out
    shutil.copytree(store.folder, "copy")
    Path("copy/index.html").unlink()
    assert "NoneType" in invoke("leaderboard", "--results", "copy").err
