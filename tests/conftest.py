"""Before anything imports torch: one thread for each test process, as pytest-xdist wants it.

With one thread there is one search worker too, so that networks in tests may count their passes.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_report_header() -> str:
    """What repeats the campaigns of ``-m slow``."""
    # Hypothesis takes a moment, which workers of pytest-xdist do without.
    from campaign import EXAMPLES, SEED

    return f"campaigns: FUZZ_SEED={SEED} FUZZ_EXAMPLES={EXAMPLES}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with this folder's own files: a long one that came last would be waited for."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


def pytest_collection_finish() -> None:
    """Leave what all test files imported out of every later garbage collection, and of forks."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """At the end everything is let go: libraries report what they believe to be leaked."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or changes what the user has trusted."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("XDG_CONFIG_HOME", folder)
        yield


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in few pixels: most of what a figure costs is the size of its picture."""
    if "robench.reporting.plots.style" in sys.modules:
        monkeypatch.setattr("robench.reporting.plots.style._DPI", 40)


@pytest.fixture
def saved_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but their files say only that they were: rendering them is what costs."""
    from robench.files import atomic_write
    from robench.reporting.plots import render

    def save(figure: Any, stem: Path) -> tuple[Path, Path]:
        png, svg = (stem.with_name(stem.name + suffix) for suffix in (".png", ".svg"))
        for path in (png, svg):
            atomic_write(path, figure.get_suptitle().encode())
        return png, svg

    monkeypatch.setattr(render, "save", save)
