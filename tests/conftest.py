"""Before anything imports torch: one thread for each test process, as pytest-xdist wants it.

With one thread there is one search worker too, so that networks in tests may count their passes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
