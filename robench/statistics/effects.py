"""Do two groups of samples differ in some number, and how much?

Used for the findings on attention: values of broken samples against those of survivors, whose
distributions are skewed and full of ties. The effect size is what to read; the p-value says
whether it could be chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from robench.statistics.intervals import Interval, check_level

__all__ = ["GroupDifference", "auc_interval", "mann_whitney"]

_NUDGE = 1e-9


@dataclass(frozen=True)
class GroupDifference:
    """What :func:`mann_whitney` found. NaN where a group is empty."""

    n_first: int
    n_second: int
    u: float
    """Mann and Whitney's U of the first group."""
    p_value: float
    auc: Interval
    """P(first > second) + ½ P(equal): ½ for no effect."""

    @property
    def rank_biserial(self) -> float:
        """2·AUC − 1, in [−1, 1]: positive where the first group has the larger values."""
        return 2 * self.auc.estimate - 1


def mann_whitney(
    first: npt.ArrayLike, second: npt.ArrayLike, level: float = 0.95
) -> GroupDifference:
    """Two-sided Mann–Whitney U test with the AUC as effect size.

    Args:
        first, second: values of the two groups, shapes (m,) and (n,); NaN entries are left out.
        level: confidence level of the effect size's interval.

    Raises:
        UsageError: the level makes no sense.
    """
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    m, n = len(a), len(b)
    if not (m and n):
        undefined = Interval(math.nan, math.nan, math.nan, check_level(level))
        return GroupDifference(m, n, math.nan, math.nan, undefined)
    if np.ptp(np.concatenate([a, b])) == 0:
        # All values tie: SciPy's variance is 0 there.
        return GroupDifference(m, n, m * n / 2, 1.0, auc_interval(0.5, m, n, level))
    test = stats.mannwhitneyu(a, b, alternative="two-sided")
    u = float(test.statistic)
    return GroupDifference(m, n, u, float(test.pvalue), auc_interval(u / (m * n), m, n, level))


def auc_interval(auc: float, m: int, n: int, level: float = 0.95) -> Interval:
    """Newcombe's score-like interval of an AUC (2006, method 5).

    Unlike DeLong's it has a width at 0 and 1, where no pair was out of order.

    Args:
        auc: the estimate in [0, 1].
        m, n: sizes of the two groups, at least 1.
        level: two-sided confidence level.
    """
    z = float(stats.norm.isf((1 - check_level(level)) / 2))
    star = (m + n) / 2 - 1

    def excess(theta: float) -> float:
        bracket = 1 + star * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (auc - theta) ** 2 - z**2 * theta * (1 - theta) * bracket / (m * n)

    # At 0 and 1 the estimate is itself a root but no limit, hence the nudge.
    low = 0.0 if auc <= 0 else float(optimize.brentq(excess, 0.0, min(auc, 1 - _NUDGE)))
    high = 1.0 if auc >= 1 else float(optimize.brentq(excess, max(auc, _NUDGE), 1.0))
    return Interval(auc, low, high, level)
