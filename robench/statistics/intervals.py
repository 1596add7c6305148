"""Confidence intervals for a share of samples, such as an accuracy.

Wilson's score interval. Clopper–Pearson's never covers less than it promises and pays for it: it
covers more than was asked nearly everywhere, and is wider (3 % at 375 of 500, more towards 0 and
1). Wilson's covers what was asked on average over p, stays inside [0, 1], has a width at 0 and n
hits too, and is the single-sample form of the score test that paired comparisons here use (Brown,
Cai and DasGupta 2001 recommend it). Where a guarantee matters more than width, as for what an
audit may have missed, the exact bound is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from robench.errors import UsageError
from robench.statistics.numerics import normal_quantile

NUDGE = 1e-9
"""How far a root is looked for beside an estimate that is itself a root, but no limit."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence limits, in the unit of the quantity (shares in [0, 1]), all
    NaN where nothing was observed; ``level`` in (0, 1) is that of the two limits together."""

    estimate: float
    low: float
    high: float
    level: float = 0.95

    @property
    def defined(self) -> bool:
        """Whether anything was observed."""
        return not math.isnan(self.estimate)

    def scaled(self, factor: float) -> Interval:
        """The same in another unit; 100 turns shares into percent. ``factor`` > 0."""
        return Interval(self.estimate * factor, self.low * factor, self.high * factor, self.level)


def check_level(level: float) -> float:
    """``level`` itself.

    Raises:
        UsageError: it is not strictly between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"confidence level {level} is not between 0 and 1", hint="Write 0.95")
    return level


def two_sided_quantile(level: float) -> float:
    """Standard deviations that a normal interval of confidence ``level`` reaches to each side."""
    return -normal_quantile((1 - check_level(level)) / 2)


def undefined(level: float) -> Interval:
    """The interval of nothing observed."""
    return Interval(math.nan, math.nan, math.nan, check_level(level))


def wilson(hits: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's two-sided score interval (1927) of ``hits/n``, without continuity correction;
    undefined for n = 0.

    Raises:
        UsageError: ``hits`` is not in 0 … n, or the level makes no sense.
    """
    _check_counts(hits, n)
    if n == 0:
        return undefined(level)
    p, z = hits / n, normal_quantile(0.5 + 0.5 * check_level(level))
    width = 2 * (n + z**2)
    centre = (2 * n * p + z**2) / width
    half = z / width * math.sqrt(4 * n * p * (1 - p) + z**2)
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return Interval(p, low, high, level)


def missed_share_upper(hits: int, audited: int, *, population: int, level: float = 0.95) -> float:
    """Exact one-sided upper bound on the share of hits in a population, given how many of the
    ``audited`` samples, drawn at random without replacement, were hits.

    The hypergeometric bound: the largest number of hits in the population that would still show
    ``hits`` or fewer with probability 1 − level or more, and 0 once everything was audited without
    a hit.

    Returns:
        A share in [0, 1]; NaN if nothing was audited.

    Raises:
        UsageError: the counts contradict each other, or the level makes no sense.
    """
    _check_counts(hits, audited)
    alpha = 1 - check_level(level)
    if audited == 0:
        return math.nan
    if population < audited:
        raise UsageError(f"{audited} samples audited out of only {population}")
    # Imported here: SciPy's statistics takes a second to load, and most commands do without.
    from scipy.stats import hypergeom

    # The chance of so few hits falls as the population's hits grow: bisection over whole numbers.
    # A chance that equals 1 − level up to rounding is not rejected: the bound errs upwards.
    rejected = alpha * (1 - 1e-9)
    low, high = hits, population - (audited - hits)
    while low < high:
        middle = (low + high + 1) // 2
        if hypergeom.cdf(hits, population, middle, audited) > rejected:
            low = middle
        else:
            high = middle - 1
    return low / population


def unaudited_share_upper(
    survivors: int, audited: int, *, hits: int = 0, broken: int = 0, errored: int = 0
) -> float:
    """95 % upper bound on the share of an audit's survivors that stages would break which ran on the
    audited ones alone, and broke none of them.

    Of N ``survivors`` m were ``audited`` at random. All stages ran on them, and those up to one, j,
    on the others as well; these broke ``broken``, ``hits`` = h of them audited, and none after j broke
    an audited one. What becomes of a sample does not depend on whether it was drawn, so given their
    number the m − h audited samples that survive j are a random sample, without replacement, of the
    N′ = N − ``broken`` that do, and 0 of them are hits of later stages:
    ``missed_share_upper(0, m − h, population=N′)``, times N′/N as a share of the survivors.

    That j was chosen by the same audit costs nothing. With m′ = m − h, let i be the last stage for which
    m′ samples without a hit would give too low a bound, N″ the survivors of the last stage: too low is
    C(N″, m′) / C(N′ᵢ, m′) <= 5 %. The bound for j fails only if j <= i, and then the audited survivors of
    i are m′ too, none of them a later hit. Each such m′ has at most 5 % of the chance that i
    leaves m′ audited survivors; i does not fall with m′, and later stages leave fewer, so no two of
    these events happen together, and their chances sum to 5 % of 1 at most.

    ``errored`` samples, of all that the stages after the draw failed on, count as survivors of none
    and as audited all: that errs upwards, whichever they were.

    Returns:
        A share in [0, 1]; 0 without survivors.
    """
    left = survivors - broken - errored
    seen = max(0, audited - hits - errored)
    if left <= 0:
        return 0.0
    return (missed_share_upper(0, seen, population=left) if seen else 1.0) * (left / survivors)


def mean_interval(values: npt.ArrayLike, level: float = 0.95) -> Interval:
    """The mean of many values (n,) by the normal approximation; NaN entries are left out.

    Undefined for fewer than two values.
    """
    found = np.asarray(values, dtype=np.float64)
    found = found[~np.isnan(found)]
    if len(found) < 2:
        return undefined(level)
    half = two_sided_quantile(level) * float(found.std(ddof=1)) / math.sqrt(len(found))
    mean = float(found.mean())
    return Interval(mean, mean - half, mean + half, level)


def unpaired_difference(
    hits: int, n: int, other_hits: int, other_n: int, level: float = 0.95
) -> Interval:
    """Newcombe's interval (1998) of the difference of two shares from separate samples.

    For a baseline of which only the accuracy and n are known. On the same samples it is wider
    than a paired interval, so what it shows holds; what it cannot show, a paired one may.

    Returns:
        ``hits/n − other_hits/other_n`` in [−1, 1]; undefined if either n is 0.

    Raises:
        UsageError: impossible counts, or a level that makes no sense.
    """
    one, two = wilson(hits, n, level), wilson(other_hits, other_n, level)
    delta = one.estimate - two.estimate
    below = math.hypot(one.estimate - one.low, two.high - two.estimate)
    above = math.hypot(one.high - one.estimate, two.estimate - two.low)
    return Interval(delta, delta - below, delta + above, level)


def _check_counts(hits: int, n: int) -> None:
    if n < 0 or not 0 <= hits <= n:
        raise UsageError(f"{hits} hits in {n} trials is impossible")
