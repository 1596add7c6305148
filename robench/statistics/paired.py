"""Two models on the same samples: is one better, and by how much?

Both saw the same images, so only the images on which they disagree say anything about a
difference. Shares are in [0, 1]; a difference is always *first minus second*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from robench.errors import UsageError
from robench.statistics.intervals import NUDGE, Interval, check_level, two_sided_quantile, undefined
from robench.statistics.numerics import root

Alternative = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class PairedCounts:
    """How often the first and the second model were right, on the same samples."""

    both: int
    only_first: int
    only_second: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.only_first, self.only_second, self.neither) < 0:
            raise UsageError(f"negative count in {self}")

    @classmethod
    def of(cls, first: npt.ArrayLike, second: npt.ArrayLike) -> PairedCounts:
        """Count from two boolean arrays of shape (n,), aligned by sample.

        Raises:
            UsageError: the shapes differ.
        """
        a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
        if a.shape != b.shape or a.ndim != 1:
            raise UsageError(f"paired outcomes have shapes {a.shape} and {b.shape}")
        return cls(*(int(cell.sum()) for cell in (a & b, a & ~b, ~a & b, ~a & ~b)))

    @property
    def n(self) -> int:
        """Samples."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def discordant(self) -> int:
        """Samples that exactly one of the two gets right."""
        return self.only_first + self.only_second

    @property
    def difference(self) -> float:
        """Accuracy of the first minus that of the second; NaN without samples."""
        return (self.only_first - self.only_second) / self.n if self.n else math.nan


def mcnemar(counts: PairedCounts, alternative: Alternative = "two-sided") -> float:
    """p-value of the exact McNemar test: are the discordant samples split evenly?

    ``"greater"``: the alternative is that the first model is better. Without discordant samples
    there is no evidence of anything: p = 1.
    """
    if counts.discordant == 0:
        return 1.0
    # Imported here: SciPy's statistics takes a second to load, and most commands do without.
    from scipy.stats import binomtest

    test = binomtest(counts.only_first, counts.discordant, 0.5, alternative=alternative)
    return float(test.pvalue)


def tango_interval(counts: PairedCounts, level: float = 0.95) -> Interval:
    """Tango's score interval (1998) of the paired difference, in [−1, 1].

    The set of differences that the score test does not reject; it stays sensible where the
    textbook interval collapses, as with no discordant sample. Undefined for n = 0.

    Raises:
        UsageError: the level makes no sense.
    """
    z = two_sided_quantile(level)
    if counts.n == 0:
        return undefined(level)
    estimate = counts.difference

    def excess(delta: float) -> float:
        # Positive where the score test rejects `delta`; no division, so defined at ±1 too.
        distance = counts.n * (estimate - delta)
        return distance**2 - z**2 * counts.n * _score_variance(counts, delta)

    limits = []
    for end in (-1.0, 1.0):
        # The variance may vanish at the estimate itself, which is then a root but no limit.
        start = estimate + math.copysign(NUDGE, end)
        inside = abs(start) < 1 and excess(end) > 0
        limits.append(root(excess, start, end) if inside else end)
    return Interval(estimate, limits[0], limits[1], level)


def bootstrap_mean(
    differences: npt.ArrayLike, level: float = 0.95, *, resamples: int = 9999, seed: int = 0
) -> Interval:
    """BCa bootstrap interval of the mean of per-sample differences, shape (n,).

    NaN entries (undefined for one of the models) are left out. Undefined for fewer than two
    samples; a point if all differences are equal, as for a model against itself. The same seed
    gives the same interval.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return undefined(level)
    check_level(level)
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, level)
    # Imported here: SciPy's statistics takes a second to load, and most commands do without.
    from scipy.stats import bootstrap

    result = bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        # A resample matrix of at most 2 million numbers, 16 MB.
        batch=max(1, 2_000_000 // len(values)),
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    limits = result.confidence_interval
    return Interval(mean, float(limits.low), float(limits.high), level)


def bootstrap_worst_class(
    classes: Sequence[PairedCounts], *, resamples: int = 1999, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Bootstrap draws of the difference of two worst classes, each the smallest of its accuracies.

    A minimum has no formula, so samples are drawn again inside each class. Only how often each
    of the four outcomes is drawn matters, and that is multinomial: no sample is touched. Classes
    without samples are passed over.

    Returns:
        Differences of shares in [−1, 1], shape (resamples,); NaN without any sample.
    """
    rng = np.random.default_rng(seed)
    accuracies = [np.full((2, resamples), np.nan)]
    for counts in classes:
        if counts.n:
            cells = np.array([counts.both, counts.only_first, counts.only_second, counts.neither])
            both, first, second, _ = rng.multinomial(counts.n, cells / counts.n, size=resamples).T
            accuracies.append(np.stack([both + first, both + second]) / counts.n)
    lowest = np.fmin.reduce(accuracies)
    difference: npt.NDArray[np.float64] = lowest[0] - lowest[1]
    return difference


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjustment: reject where the adjusted p is below α, and the chance
    of any false rejection stays below α.

    NaN stands for a test that was not made: it stays NaN and does not count.

    Raises:
        UsageError: a p-value is outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    made = np.flatnonzero(~np.isnan(values))
    if np.any((values[made] < 0) | (values[made] > 1)):
        raise UsageError(f"p-values must be in [0, 1]: {list(p_values)}")
    adjusted = np.full(len(values), math.nan)
    order = made[np.argsort(values[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return list(map(float, adjusted))


def _score_variance(counts: PairedCounts, delta: float) -> float:
    """Variance of one pair's difference under the hypothesis ``delta``, with the nuisance
    parameter at its restricted maximum-likelihood value (Tango 1998, equation 6)."""
    n, plus, minus = counts.n, counts.only_first, counts.only_second
    a = 2.0 * n
    b = -plus - minus + (2 * n - plus + minus) * delta
    c = -minus * delta * (1 - delta)
    share_minus = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    return max(0.0, 2 * share_minus + delta * (1 - delta))
