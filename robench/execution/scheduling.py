"""In how many parts a job goes to many workers, in which order parts are begun, and which one twice.

``benchmarks/stragglers.py`` simulates with these very functions what they come to.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

_MOST_A_WORKER, _FEWEST_A_WORKER = 12, 6
"""Parts of all jobs together, where nobody says how many"""
_LATE = 1.5
"""How many times as long as others a part takes that is late"""

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


@dataclass(frozen=True)
class Taken:
    """How long a part has been at work, or was."""

    seconds: float
    size: float
    """How much it is beside the others, as far as that is known beforehand"""


def latest(running: Sequence[Taken], done: Sequence[Taken]) -> int | None:
    """Which of the parts that one worker has, to give to a second one too, where no other is left.

    That which takes longest for its size, if it takes half as long again as half of those that are
    done: its machine may be slow, or no more. Draws are keyed by sample, so both find the same, and the
    first to end counts. None: no part is late.
    """
    if not running or not done:
        return None
    pace = [taken.seconds / taken.size for taken in running]
    at = max(range(len(pace)), key=pace.__getitem__)
    usual = statistics.median(taken.seconds / taken.size for taken in done)
    return at if pace[at] > _LATE * usual else None
