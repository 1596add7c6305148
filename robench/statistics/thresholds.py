"""A share of samples at every threshold, such as robust accuracy at every radius."""

import numpy as np
import numpy.typing as npt

from robench.errors import UsageError
from robench.statistics.intervals import Interval, wilson


def shares_above(
    values: npt.ArrayLike, level: float = 0.95
) -> tuple[npt.NDArray[np.float64], list[Interval]]:
    """What share of samples lies above a threshold, at every threshold from 0 on.

    The share is a step function that never rises: from each of the returned thresholds up to the
    next it is the interval's estimate. Intervals are Wilson's, each for its own threshold.

    Args:
        values: (n,), at least 0, +inf for what lies above every threshold.
        level: of the intervals.

    Returns:
        Thresholds (k,), 0 first, then every finite value above it, rising; an interval for each.

    Raises:
        UsageError: a value is negative or NaN, or the level makes no sense.
    """
    found = np.asarray(values, dtype=np.float64)
    if np.isnan(found).any() or (found < 0).any():
        raise UsageError("values for shares above a threshold must be at least 0")
    thresholds = np.unique(np.append(found[np.isfinite(found)], 0.0))
    above = len(found) - np.searchsorted(np.sort(found), thresholds, side="right")
    return thresholds, [wilson(count, len(found), level) for count in above.tolist()]
