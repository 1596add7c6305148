"""Before anything imports torch: one thread for each test process, as pytest-xdist wants it.

With one thread there is one search worker too, so that networks in tests may count their passes.
"""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Leave what all test files imported out of every later garbage collection, and of forks."""
    gc.collect()
    gc.freeze()
