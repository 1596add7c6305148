"""In how many parts a job goes to many workers, and in which order parts are begun.

``benchmarks/stragglers.py`` simulates with these very functions what they come to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

_MOST_A_WORKER, _FEWEST_A_WORKER = 8, 4
"""Parts of all jobs together, where nobody says how many"""

TaskT = TypeVar("TaskT")


def parts_of(n: int, share: float, workers: int, least: int) -> int:
    """Into how many parts to divide a job of ``n`` samples that is a ``share`` of all the work, 0 to 1.

    None has fewer than ``least`` samples, which are a poor batch, unless workers would have nothing to do;
    a small job has few parts, as each call takes its time to start.
    """
    most, fewest = (math.ceil(a * workers * share) for a in (_MOST_A_WORKER, _FEWEST_A_WORKER))
    return max(1, min(most, max(fewest, n // least), n))


def largest_first(tasks: Sequence[TaskT], size: Callable[[TaskT], float]) -> list[TaskT]:
    """In the order in which to begin them: what is left for the end is small. Equals keep their order."""
    return sorted(tasks, key=size, reverse=True)
