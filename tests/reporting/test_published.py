"""A folder's tables, figures and page are made anew where they would come out otherwise, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_factory import make_record, make_samples

from robench.reporting import publish as publishing
from robench.reporting.catalogue import reports
from robench.reporting.plots import render
from robench.reporting.published import NAME
from robench.results import Store
from robench.results.clean_samples import CleanSamples, keep_clean_samples


def put(store: Store, model: str, letters: str) -> None:
    samples = make_samples(letters)
    store.write(make_record(samples, model=model), samples)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch, saved_unseen: None) -> list[str]:
    """One for each time that a page was made; of figures there is one of each model."""
    made: list[str] = []
    confusion = {"confusion": reports("figure")["confusion"]}
    monkeypatch.setattr(render, "reports", lambda kind: confusion)

    def build(*_: Any, **__: Any) -> str:
        made.append("")
        return "the page"

    monkeypatch.setattr(publishing, "build_page", build)
    return made


def test_only_what_would_come_out_otherwise_is_made(
    tmp_path: Path, pages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)

    def publish() -> int:
        """How often the page was made for it; all files are there whatever it did."""
        before = len(pages)
        files = publishing.publish(store, list(store.records()))
        assert files[0] == tmp_path / "leaderboard.csv"
        assert len(set(files)) == len(files) > 5
        assert all(path.is_file() for path in files)
        return len(pages) - before

    put(store, "one", "SSBC")
    put(store, "two", "SBBC")
    assert [publish(), publish()] == [1, 0]
    put(store, "three", "BBBC")
    assert [publish(), publish()] == [1, 0]
    samples = CleanSamples.of(["a"], np.zeros((1, 1, 4, 4)))
    keep_clean_samples(store, "0" * 64, samples)
    assert [publish(), publish()] == [1, 0]
    board = tmp_path / "leaderboard.csv"
    content = board.read_bytes()
    board.write_bytes(content.replace(b"one", b"own"))
    assert publish() == 1
    assert board.read_bytes() == content
    next((tmp_path / "plots").rglob("*.png")).unlink()
    assert publish() == 1
    with monkeypatch.context() as patch:
        patch.setattr("robench.reporting.published.installed_versions", lambda *_: {"pandas": "9"})
        assert publish() == 1
    assert publish() == 1
    for other in (
        "",
        "[]",
        '{"made_of": null, "files": {}}',
        '{"files": {"../x": ""}}',
        "[" * 9999,
    ):
        (tmp_path / NAME).write_text(other)
        assert [publish(), publish()] == [1, 0], other


def test_records_that_are_not_stored_are_not_remembered(tmp_path: Path, pages: list[str]) -> None:
    store = Store(tmp_path)
    put(store, "one", "SSBC")
    (stored,) = store.records()
    loose = type(stored).of(stored.record, make_samples("SSBC"))
    for _ in range(2):
        publishing.publish(store, [loose])
    assert len(pages) == 2
    publishing.publish(store, [stored])
    assert len(pages) == 3
