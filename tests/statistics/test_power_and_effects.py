from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robench.errors import UsageError
from robench.statistics import (
    PairedCounts,
    auc_interval,
    mann_whitney,
    mcnemar,
    n_for_difference,
    n_for_noninferiority,
    rank_correlation,
    smallest_difference,
    tango_interval,
)


def power_of_the_exact_test(n: int, difference: float, discordant: float) -> float:
    """Summed over every outcome that the test rejects at 5 %."""
    better = (discordant + difference) / (2 * discordant)
    weights = stats.binom.pmf(np.arange(n + 1), n, discordant)
    power = 0.0
    for m in map(int, np.flatnonzero(weights > 1e-9)):
        # Outcomes are rejected from both ends, up to the first that is not.
        rejected = 0
        while rejected <= m and mcnemar(PairedCounts(0, rejected, m - rejected, 0)) <= 0.05:
            rejected += 1
        low, high = stats.binom.cdf(rejected - 1, m, [better, 1 - better])
        power += weights[m] * (low + high)
    return power


def test_exact_test_never_exceeds_its_level() -> None:
    assert 0 < power_of_the_exact_test(100, 0.0, 0.2) <= 0.05


def test_n_for_a_difference_gives_about_the_power_asked() -> None:
    n = n_for_difference(0.12, 0.25)
    assert n is not None
    # The exact test is a little conservative, so a little less than 80 %.
    assert 0.74 < power_of_the_exact_test(n, 0.12, 0.25) < 0.82


@given(st.floats(0.02, 0.6), st.floats(0.1, 0.99))
def test_smallest_difference_inverts_n(discordant: float, part: float) -> None:
    delta = discordant * part
    n = n_for_difference(delta, discordant)
    assert n is not None
    shown = smallest_difference(n, discordant)
    if shown is not None:
        assert shown <= delta + 1e-9
        if n > 1:
            before = smallest_difference(n - 1, discordant)
            assert before is None or before >= delta - 1e-9


def test_no_n_shows_no_difference() -> None:
    assert n_for_difference(0.0, 0.1) is None
    assert smallest_difference(20, 0.05) is None
    assert smallest_difference(20, 0.0) is None
    assert n_for_noninferiority(0.01, 0.05, difference=-0.02) is None


def test_n_for_noninferiority_gives_about_the_power_asked() -> None:
    margin, discordant = 0.02, 0.06
    n = n_for_noninferiority(margin, discordant)
    assert n is not None
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, [discordant / 2, discordant / 2, 1 - discordant], size=3000)
    drawn, times = np.unique(draws, axis=0, return_counts=True)
    passes = [tango_interval(PairedCounts(r, b, c, 0), 0.9).low > -margin for b, c, r in drawn]
    assert np.average(passes, weights=times) == pytest.approx(0.8, abs=0.03)


def test_n_for_models_that_never_disagreed() -> None:
    n = n_for_noninferiority(0.01, 0.0)
    assert n is not None
    assert tango_interval(PairedCounts(n, 0, 0, 0), 0.9).low >= -0.01
    assert tango_interval(PairedCounts(n - 2, 0, 0, 0), 0.9).low < -0.01


@pytest.mark.parametrize(
    "call",
    [
        lambda: n_for_difference(0.2, 0.1),
        lambda: n_for_difference(0.1, 1.2),
        lambda: smallest_difference(0, 0.1),
        lambda: n_for_noninferiority(0.0, 0.1),
        lambda: n_for_difference(0.1, 0.2, power=1.0),
    ],
)
def test_impossible_requests_are_refused(call: object) -> None:
    with pytest.raises(UsageError):
        call()  # type: ignore[operator]


VALUES = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=30)


@given(VALUES, VALUES)
def test_effect_size_counts_pairs(first: list[float], second: list[float]) -> None:
    found = mann_whitney(first, second)
    pairs = [(x > y) + 0.5 * (x == y) for x in first for y in second]
    assert found.auc.estimate == pytest.approx(np.mean(pairs))
    assert found.rank_biserial == pytest.approx(2 * np.mean(pairs) - 1)
    assert found.u == pytest.approx(np.sum(pairs))
    back = mann_whitney(second, first)
    assert back.p_value == pytest.approx(found.p_value)
    assert back.auc.low == pytest.approx(1 - found.auc.high, abs=1e-7)
    assert found.auc.low - 1e-12 <= found.auc.estimate <= found.auc.high + 1e-12


def test_p_value_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 80), rng.normal(0, 1, 60)
    expected = stats.mannwhitneyu(a, b).pvalue
    assert mann_whitney(np.append(a, math.nan), b).p_value == pytest.approx(expected)


def test_empty_group_and_constant_values() -> None:
    empty = mann_whitney([], [1.0, 2.0])
    assert math.isnan(empty.p_value)
    assert math.isnan(empty.rank_biserial)
    same = mann_whitney([2.0] * 4, [2.0] * 5)
    assert same.p_value == 1
    assert same.rank_biserial == 0


def test_separated_groups_have_an_interval_with_width() -> None:
    found = mann_whitney(np.arange(20.0) + 100, np.arange(20.0))
    assert found.auc.estimate == found.auc.high == 1
    assert 0.8 < found.auc.low < 0.95


def test_auc_interval_covers() -> None:
    rng = np.random.default_rng(1)
    truth = stats.norm.cdf(0.5 / math.sqrt(2))
    covered = 0
    for _ in range(400):
        a, b = rng.normal(0.5, 1, (1, 40)), rng.normal(0, 1, (30, 1))
        interval = auc_interval(float((a > b).mean()), 40, 30)
        covered += interval.low <= truth <= interval.high
    assert 0.925 < covered / 400 < 0.985


@pytest.mark.parametrize(("m", "n"), [(3, 4), (3, 40), (9, 12), (40, 60), (8, 200)])
@pytest.mark.parametrize("ties", [0, 4, 12])
def test_mann_whitney_is_scipys(m: int, n: int, ties: int) -> None:
    """Exact where a group is small and nothing ties, else by the normal approximation."""
    random = np.random.default_rng(m + n + ties)
    first, second = random.normal(0.5, 1, m), random.normal(0, 1, n)
    if ties:
        first, second = np.round(first * ties) / ties, np.round(second * ties) / ties
    found, expected = mann_whitney(first, second), stats.mannwhitneyu(first, second)
    assert found.u == expected.statistic
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-14)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=9, max_size=25))
def test_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=float).T
    found = rank_correlation(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert math.isnan(found.p_value)
        return
    reference = stats.spearmanr(a, b)
    assert found.rho.estimate == pytest.approx(reference.statistic)
    assert found.p_value == pytest.approx(reference.pvalue)
    assert found.rho.low <= found.rho.estimate + 1e-9
    assert found.rho.estimate <= found.rho.high + 1e-9


def test_rank_correlation_of_few_pairs_is_exact() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 4.0, 3.0, math.nan]
    found = rank_correlation(a, b)
    assert found.n == 4
    # ρ = 0.8: of the 24 orders, 1 reaches 1, 3 reach 0.8, and as many on the other side.
    assert found.rho.estimate == pytest.approx(0.8)
    assert found.p_value == pytest.approx(8 / 24)
    assert math.isnan(rank_correlation(a[:3], b[:3]).rho.low)
    assert math.isnan(rank_correlation([1.0], [2.0]).p_value)
    with pytest.raises(UsageError, match="shapes"):
        rank_correlation([1.0], [1.0, 2.0])
