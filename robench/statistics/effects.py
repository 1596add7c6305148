"""Do two groups of samples differ in some number, and how much?

Used for the findings on attention: values of broken samples against those of survivors, whose
distributions are skewed and full of ties. The effect size is what to read; the p-value says
whether it could be chance.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robench.errors import UsageError
from robench.statistics.intervals import NUDGE, Interval, two_sided_quantile, undefined
from robench.statistics.numerics import normal_tail, root

_EXACT_PAIRS = 8
_EXACT_GROUP = 8


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
    """Two-sided Mann–Whitney U test of two groups' values, (m,) and (n,), with the AUC as effect
    size, and its interval of the given level; NaN entries are left out.

    Raises:
        UsageError: the level makes no sense.
    """
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    m, n = len(a), len(b)
    if not (m and n):
        return GroupDifference(m, n, math.nan, math.nan, undefined(level))
    if np.ptp(np.concatenate([a, b])) == 0:
        # All values tie: SciPy's variance is 0 there.
        return GroupDifference(m, n, m * n / 2, 1.0, auc_interval(0.5, m, n, level))
    ranks, ties = _ranks(np.concatenate([a, b]))
    u = float(ranks[:m].sum() - m * (m + 1) / 2)
    if min(m, n) <= _EXACT_GROUP and len(ties) == m + n:
        # Imported here: SciPy's statistics takes a second to load, and most commands do without.
        from scipy.stats import mannwhitneyu

        p = float(mannwhitneyu(a, b, alternative="two-sided").pvalue)
    else:
        p = _normal_p(u, m, n, ties)
    return GroupDifference(m, n, u, p, auc_interval(u / (m * n), m, n, level))


def _ranks(
    values: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The values' ranks from 1, equal ones their mean's, (n,); how many there are of each value."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return ranks, counts


def _normal_p(u: float, m: int, n: int, ties: npt.NDArray[np.int64]) -> float:
    """Two-sided p-value by the normal approximation, corrected for ties and for continuity."""
    size = m + n
    together = (ties**3 - ties).sum() / (size * (size - 1))
    spread = math.sqrt(m * n / 12 * (size + 1 - together))
    z = (max(u, m * n - u) - m * n / 2 - 0.5) / spread
    return min(1.0, 2 * normal_tail(z))


@dataclass(frozen=True)
class RankCorrelation:
    """What :func:`rank_correlation` found. NaN where it is undefined."""

    n: int
    rho: Interval
    """Spearman's ρ in [−1, 1]; no limits below four pairs."""
    p_value: float


def rank_correlation(
    first: npt.ArrayLike, second: npt.ArrayLike, level: float = 0.95
) -> RankCorrelation:
    """Spearman's rank correlation of paired values (n,), such as two figures of several models;
    pairs with a NaN are left out.

    The p-value is exact, over all orders, for up to 8 pairs, where the usual approximation is
    poor; SciPy's beyond. The interval is Fisher's with the standard error of Bonett and Wright
    (2000), two-sided.

    Raises:
        UsageError: the level makes no sense, or the shapes differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise UsageError(f"paired values have shapes {a.shape} and {b.shape}")
    z = two_sided_quantile(level)
    both = ~np.isnan(a) & ~np.isnan(b)
    a, b = a[both], b[both]
    n = len(a)
    if n < 2 or (a == a[0]).all() or (b == b[0]).all():
        return RankCorrelation(n, undefined(level), math.nan)
    a, b = _ranks(a)[0], _ranks(b)[0]
    rho = float(np.clip(np.corrcoef(a, b)[1, 0], -1, 1))
    low = high = math.nan
    if n > 3:
        # An estimate of ±1 has an infinite transform; the interval then ends there.
        centre = math.atanh(min(max(rho, -1 + NUDGE), 1 - NUDGE))
        half = z * math.sqrt((1 + rho**2 / 2) / (n - 3))
        low, high = math.tanh(centre - half), math.tanh(centre + half)
    return RankCorrelation(n, Interval(rho, low, high, level), _rank_p(a, b, rho))


def _rank_p(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], rho: float) -> float:
    if len(a) <= _EXACT_PAIRS:
        return _exact_rank_p(a, b, rho)
    # Imported here, as above.
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).pvalue)


def _exact_rank_p(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], rho: float) -> float:
    orders = np.array(list(itertools.permutations(range(len(a)))))
    a, b = (a - a.mean()) / a.std(), (b - b.mean()) / b.std()
    possible = (a * b[orders]).mean(axis=1)
    return float(np.mean(np.abs(possible) >= abs(rho) - 1e-9))


def auc_interval(auc: float, m: int, n: int, level: float = 0.95) -> Interval:
    """Newcombe's score-like interval of an AUC (2006, method 5).

    Unlike DeLong's it has a width at 0 and 1, where no pair was out of order. ``auc`` is in [0, 1];
    the groups have m and n samples, at least 1; the level is two-sided.
    """
    z = two_sided_quantile(level)
    star = (m + n) / 2 - 1

    def excess(theta: float) -> float:
        bracket = 1 + star * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (auc - theta) ** 2 - z**2 * theta * (1 - theta) * bracket / (m * n)

    # At 0 and 1 the estimate is itself a root but no limit, hence the nudge.
    low = 0.0 if auc <= 0 else root(excess, 0.0, min(auc, 1 - NUDGE))
    high = 1.0 if auc >= 1 else root(excess, max(auc, NUDGE), 1.0)
    return Interval(auc, low, high, level)
