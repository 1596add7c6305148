"""Memory that torch frees on a CPU stays with the process, instead of going back each time.

glibc returns large blocks to the system when they are freed and asks for them again at the next
layer, page by page, each one zeroed anew. How much it returns depends on the largest block that
the process has freed so far; at worst it takes longer than the convolutions. benchmarks/allocator.py
measures it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

__all__ = ["keep_freed_memory"]

# malloc.h's names
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_LARGEST_INT = 2**31 - 1
_USERS_OWN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Environment variables, by how they begin, of somebody who has chosen an allocator's settings"""


@cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep up to 2 GiB of freed memory for what is allocated next.

    Concerns the whole process and those it forks, from now on; changes no result. Whoever sets
    ``MALLOC_…``, ``GLIBC_TUNABLES`` or ``LD_PRELOAD`` keeps their own settings.

    Returns:
        Whether it was done: only glibc, on Linux, has the setting.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith(_USERS_OWN) for name in os.environ
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Blocks of their own, outside the heap, are what is given back whatever the threshold.
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
