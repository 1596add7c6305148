"""How many further finds lower a robust accuracy, and how many are what any further search finds.

Another search of a model that hides nothing breaks a sample or two more as well. What this amounts
to on ordinary networks, :data:`RESOLUTION`, is AutoAttack's own limit for Square's gain
(fra31/auto-attack, ``checks.py``), but of the share that the finds are a sample of: its exact
interval has to lie above it, so that few samples alone prove nothing.
"""

from robench.errors import UsageError
from robench.statistics.intervals import Interval, check_level, undefined

RESOLUTION = 0.002
"""The share of all samples that a further search may break of a model that hides nothing"""


def exact(hits: int, n: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's exact two-sided interval (1934) of ``hits/n``; undefined for n = 0.

    It never covers less than it promises, so that what lies outside is not there by chance.

    Raises:
        UsageError: ``hits`` is not in 0 … n, or the level makes no sense.
    """
    if n < 0 or not 0 <= hits <= n:
        raise UsageError(f"{hits} hits in {n} trials is impossible")
    if n == 0:
        return undefined(level)
    # Takes a moment to import, and most commands do without.
    from scipy.special import betaincinv

    tail = (1 - check_level(level)) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if hits == n else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return Interval(hits / n, low, high, level)


def is_resolved(finds: int, n: int) -> bool:
    """Whether ``finds`` further finds among ``n`` samples are more than a sound model's.

    >>> [is_resolved(finds, 500) for finds in (1, 3, 4)]
    [False, False, True]
    """
    return n > 0 and exact(finds, n).low > RESOLUTION
