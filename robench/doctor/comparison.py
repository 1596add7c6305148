"""Two readings of one model on the same samples: is one better, and by how much?"""

from __future__ import annotations

from torch import Tensor

from robench.statistics.paired import PairedCounts, mcnemar

__all__ = ["gain", "most_frequent", "percent"]

_ALPHA = 1e-4
"""Level of the tests between readings: below one in a thousand after a dozen comparisons."""
_GAIN = 0.05
"""A reading must classify so many more samples, as a share; a robust network may well prefer a
little more contrast than it was trained with."""


def gain(candidate: Tensor, own: Tensor) -> float | None:
    """How many more are correct, as a share; None unless it is both large and no accident."""
    counts = PairedCounts(
        both=int((candidate & own).sum()),
        only_first=int((candidate & ~own).sum()),
        only_second=int((~candidate & own).sum()),
        neither=int((~candidate & ~own).sum()),
    )
    more = (counts.only_first - counts.only_second) / len(own)
    return more if more >= _GAIN and mcnemar(counts, "greater") < _ALPHA else None


def percent(correct: Tensor) -> str:
    """The share that is true, in percent."""
    return f"{100 * float(correct.float().mean()):.1f}"


def most_frequent(labels: Tensor) -> float:
    """The share of the most frequent label: what naming one class always would get right."""
    return float(labels.bincount().max()) / len(labels)
