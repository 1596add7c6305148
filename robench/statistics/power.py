"""What a given n could have shown, and the n that it takes.

Normal approximations for paired shares (Connor 1987 for a difference; the same with a shifted
hypothesis for non-inferiority). `benchmarks/gate_simulation.py` holds them against exact power.
``discordant`` is always the share of samples on which the two models disagree, in [0, 1].
"""

import math

from robench.errors import UsageError
from robench.statistics.intervals import check_level
from robench.statistics.numerics import normal_quantile, root


def n_for_difference(
    difference: float, discordant: float, *, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Samples that a two-sided McNemar test at ``alpha`` needs to show ``difference``.

    Returns:
        The number; None for a difference of 0, which no n shows.

    Raises:
        UsageError: |difference| > discordant, which is impossible, or a level makes no sense.
    """
    _check_shares(abs(difference), discordant)
    z_alpha, z_beta = _quantiles(alpha / 2, power)
    if difference == 0:
        return None
    spread = z_alpha * math.sqrt(discordant) + z_beta * math.sqrt(discordant - difference**2)
    return max(1, math.ceil((spread / difference) ** 2))


def smallest_difference(
    n: int, discordant: float, *, alpha: float = 0.05, power: float = 0.8
) -> float | None:
    """The smallest true difference that ``n`` samples show with the given power.

    Returns:
        A share in (0, discordant]; None if not even a difference of ``discordant``, one model
        better on every sample where they disagree, would be shown.

    Raises:
        UsageError: n < 1, or a share or level makes no sense.
    """
    if n < 1:
        raise UsageError(f"n must be at least 1, got {n}")
    _check_shares(0.0, discordant)
    z_alpha, z_beta = _quantiles(alpha / 2, power)

    def excess(delta: float) -> float:
        spread = z_alpha * math.sqrt(discordant) + z_beta * math.sqrt(discordant - delta**2)
        return delta * math.sqrt(n) - spread

    if discordant == 0 or excess(discordant) < 0:
        return None
    return root(excess, 0.0, discordant)


def n_for_noninferiority(
    margin: float,
    discordant: float,
    *,
    difference: float = 0.0,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int | None:
    """Samples needed to show that a model is worse by less than ``margin``, one-sided at α.

    Args:
        margin: the tolerated loss, a share in (0, 1).
        discordant: share of samples on which the two disagree. 0 is no knowledge, not certainty:
            the answer is then that for agreement on every sample, (z² (1 − margin)) / margin.
        difference: the true difference, candidate minus baseline.

    Returns:
        The number; None if the true difference is at or beyond the margin, so that no n does it.

    Raises:
        UsageError: a share or level makes no sense.
    """
    if not 0 < margin < 1:
        raise UsageError(f"margin {margin} is not between 0 and 1")
    _check_shares(abs(difference), discordant)
    z_alpha, z_beta = _quantiles(alpha, power)
    if difference <= -margin:
        return None
    if discordant == 0:
        return math.ceil(z_alpha**2 * (1 - margin) / margin)
    # Under the hypothesis at the margin, disagreement is at least the margin.
    null = max(discordant, margin)
    spread = z_alpha * math.sqrt(null - margin**2)
    spread += z_beta * math.sqrt(max(0.0, discordant - difference**2))
    return max(1, math.ceil((spread / (difference + margin)) ** 2))


def _quantiles(tail: float, power: float) -> tuple[float, float]:
    return -normal_quantile(check_level(tail)), normal_quantile(check_level(power))


def _check_shares(difference: float, discordant: float) -> None:
    if not 0 <= discordant <= 1:
        raise UsageError(f"discordant share {discordant} is not in [0, 1]")
    if difference > discordant + 1e-12:
        raise UsageError(
            f"a difference of {difference} is impossible where models disagree on {discordant}"
        )
