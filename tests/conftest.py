"""Before anything imports torch: one thread for each test process, as pytest-xdist wants it.

With one thread there is one search worker too, so that networks in tests may count their passes.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# What tests write need not outlive a power cut; waiting for the disk would be most of a small write.
os.fsync = lambda descriptor: None


def pytest_configure(config: pytest.Config) -> None:
    """Of what is generated a few examples, where slow tests are left out; else Hypothesis's 100."""
    if config.getoption("markexpr") == "not slow":
        from hypothesis import settings

        settings.register_profile("quick", max_examples=15)
        settings.load_profile("quick")


def pytest_report_header() -> str:
    """What repeats the campaigns of ``-m slow``."""
    # Hypothesis takes a moment, which workers of pytest-xdist do without.
    from campaign import EXAMPLES, SEED

    return f"campaigns: FUZZ_SEED={SEED} FUZZ_EXAMPLES={EXAMPLES}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with this folder's own files: a long one that came last would be waited for."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What test files import stays, so that nobody looks through it for garbage meanwhile."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Leave what all test files imported out of every later garbage collection, and of forks.

    At the very end, after pytest's own collections, all is let go: libraries report what they believe to be
    leaked.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)


@pytest.fixture(scope="session")
def configurations() -> Iterator[Iterator[str]]:
    """Folders that are not there, one for each test: few of them make theirs."""
    with tempfile.TemporaryDirectory() as folder:
        yield (os.path.join(folder, str(number)) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_configuration(monkeypatch: pytest.MonkeyPatch, configurations: Iterator[str]) -> None:
    """No test reads or changes what the user has trusted."""
    monkeypatch.setenv("XDG_CONFIG_HOME", next(configurations))


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in few pixels: most of what a figure costs is the size of its picture."""
    if "robench.reporting.plots.style" in sys.modules:
        monkeypatch.setattr("robench.reporting.plots.style._DPI", 40)


@pytest.fixture(scope="module")
def unexamined() -> Iterator[None]:
    """The doctor finds nothing: for tests of evaluations, and of cards that are made, that say nothing of it.

    Its look at a model takes longer than a short attack. It stays in the tests of the doctor, of flags,
    of the pages of the documentation, and wherever this is not asked for.
    """
    with pytest.MonkeyPatch.context() as patch:
        for asked in ("evaluation.prepared_model", "inspection.zoo_models"):
            patch.setattr(f"robench.{asked}.examine", lambda *_, **__: [])
        yield


@pytest.fixture
def saved_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but their files say only that they were: rendering them is what costs.

    Panels of samples, of a hundred axes, stay empty: tests/reporting/test_plots.py looks at theirs.
    """
    from matplotlib.figure import Figure

    from robench.files import atomic_write
    from robench.reporting.plots import samples, style

    def save(figure: Any, stem: Path) -> tuple[Path, Path]:
        png, svg = (stem.with_name(stem.name + suffix) for suffix in (".png", ".svg"))
        for path in (png, svg):
            atomic_write(path, figure.get_suptitle().encode())
        return png, svg

    monkeypatch.setattr(style, "save", save)
    monkeypatch.setattr("robench.inspection.comparison_pictures.save", save)
    monkeypatch.setattr(samples, "sample_panel", lambda *_: Figure())
