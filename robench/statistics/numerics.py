"""The normal distribution and roots, without SciPy, which takes half a second to load."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

_NORMAL = NormalDist()


def normal_quantile(p: float) -> float:
    """Where a standard normal distribution has the share ``p``, in (0, 1), below."""
    return _NORMAL.inv_cdf(p)


def normal_tail(z: float) -> float:
    """The share of a standard normal distribution above ``z``."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """A root between ``low`` and ``high``, to the last digit, by bisection.

    Raises:
        ValueError: the function has one sign at both ends.
    """
    at_low, at_high = function(low), function(high)
    if at_low == 0 or at_high == 0:
        return low if at_low == 0 else high
    if (at_low < 0) == (at_high < 0):
        raise ValueError(f"one sign at {low} and {high}")
    while low < (middle := low + (high - low) / 2) < high or high < middle < low:
        at_middle = function(middle)
        if at_middle == 0:
            return middle
        if (at_middle < 0) == (at_low < 0):
            low = middle
        else:
            high = middle
    return middle
