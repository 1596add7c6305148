from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from robench.errors import UsageError
from robench.statistics import (
    mean_interval,
    missed_share_upper,
    unaudited_share_upper,
    unpaired_difference,
    wilson,
)

COUNTS = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_is_its_closed_form(counts: tuple[int, int], level: float) -> None:
    hits, n = counts
    z = stats.norm.ppf((1 + level) / 2)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n * n)) / (1 + z**2 / n)
    interval = wilson(hits, n, level)
    assert interval.low == pytest.approx(centre - half, abs=1e-9)
    assert interval.high == pytest.approx(centre + half, abs=1e-9)


@pytest.mark.parametrize("hits, n", [(0, 7), (3, 7), (7, 7), (375, 500), (1, 10_000)])
def test_wilson_equals_the_reference(hits: int, n: int) -> None:
    interval = wilson(hits, n)
    low, high = proportion_confint(hits, n, 0.05, "wilson")
    assert interval.low == pytest.approx(np.nan_to_num(low), abs=1e-9)
    assert interval.high == pytest.approx(np.nan_to_num(high, nan=1.0), abs=1e-9)


@given(COUNTS)
def test_limits_enclose_the_estimate_and_mirror(counts: tuple[int, int]) -> None:
    hits, n = counts
    interval, mirror = wilson(hits, n), wilson(n - hits, n)
    assert 0 <= interval.low <= interval.estimate + 1e-12
    assert interval.estimate - 1e-12 <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirror.high, abs=1e-9)
    assert interval.high > interval.low


def test_nothing_observed_is_undefined() -> None:
    assert not wilson(0, 0).defined
    assert math.isnan(wilson(0, 0).low)
    assert math.isnan(missed_share_upper(0, 0, population=9))


@pytest.mark.parametrize("hits, n", [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(UsageError, match="impossible"):
        wilson(hits, n)
    with pytest.raises(UsageError, match="impossible"):
        missed_share_upper(hits, n, population=9)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_strange_levels_are_refused(level: float) -> None:
    with pytest.raises(UsageError, match="level"):
        wilson(1, 2, level)


@pytest.mark.parametrize("n, level", [(1, 0.95), (30, 0.95), (500, 0.9), (5000, 0.999)])
def test_no_hit_among_few_of_many_is_the_rule_of_three(n: int, level: float) -> None:
    """1 − (1 − level)^(1/n), about 3/n at 95 %."""
    bound = missed_share_upper(0, n, population=10**8, level=level)
    assert bound == pytest.approx(1 - (1 - level) ** (1 / n), rel=1e-3)


@pytest.mark.parametrize("hits, n", [(1, 20), (7, 9), (40, 300)])
def test_the_bound_in_a_large_population_leaves_the_level(hits: int, n: int) -> None:
    bound = missed_share_upper(hits, n, population=10**8)
    assert stats.binom.cdf(hits, n, bound) == pytest.approx(0.05, rel=1e-4)
    assert missed_share_upper(n, n, population=10**8) == 1


@settings(deadline=None)
@given(st.integers(1, 60).flatmap(lambda p: st.tuples(st.just(p), st.integers(1, p))), st.data())
def test_finite_bound_is_the_largest_not_rejected(
    sizes: tuple[int, int], data: st.DataObject
) -> None:
    population, audited = sizes
    hits = data.draw(st.integers(0, audited))
    possible = [
        share
        for share in range(hits, population - (audited - hits) + 1)
        if stats.hypergeom.cdf(hits, population, share, audited) > 0.05 * (1 - 1e-9)
    ]
    bound = missed_share_upper(hits, audited, population=population)
    assert bound == max(possible) / population
    if audited == population:
        assert bound == hits / population


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=3, max_size=4), st.data())
def test_a_bound_for_the_stages_after_the_last_find_holds_in_19_of_20_audits(
    groups: list[int], data: st.DataObject
) -> None:
    """All audits of samples that stages break, the last of which survive: how often is it too low?"""
    survivors, stages = sum(groups), range(len(groups))
    audited = data.draw(st.integers(min(1, survivors), survivors))
    fails, audits = 0, math.comb(survivors, audited)
    for drawn in itertools.product(*(range(size + 1) for size in groups)):
        if sum(drawn) != audited:
            continue
        # Groups 0 to reach − 1 are those of the stages that ran on all.
        reach = max((stage + 1 for stage in stages[:-1] if drawn[stage]), default=0)
        counts = {"hits": sum(drawn[:reach]), "broken": sum(groups[:reach])}
        bound = unaudited_share_upper(survivors, audited, **counts)
        if sum(groups[reach:-1]) > bound * survivors + 1e-9:
            fails += math.prod(map(math.comb, groups, drawn))
    assert fails <= 0.05 * audits * (1 + 1e-9)


def test_the_bound_after_an_escalation_by_hand() -> None:
    """10 of 40 broken, 3 of them among 12 audited: 9 of 30 saw nothing, so 7 of 40 at most.

    C(23, 9) / C(30, 9) = 0.057, C(22, 9) / C(30, 9) = 0.035.
    """
    assert unaudited_share_upper(40, 12, hits=3, broken=10) == pytest.approx(7 / 40)
    # An error may have been any audited survivor's: 8 of 29 saw nothing.
    likely = [k for k in range(30) if math.comb(29 - k, 8) > 0.05 * math.comb(29, 8)]
    errored = unaudited_share_upper(40, 12, hits=3, broken=10, errored=1)
    assert errored == pytest.approx(max(likely) / 40)
    assert unaudited_share_upper(40, 3, hits=3, broken=10) == 30 / 40
    assert unaudited_share_upper(40, 12) == missed_share_upper(0, 12, population=40)
    assert unaudited_share_upper(0, 0) == 0


def test_audit_larger_than_its_population_is_refused() -> None:
    with pytest.raises(UsageError, match="out of only 5"):
        missed_share_upper(0, 6, population=5)


def test_mean_interval_is_its_closed_form() -> None:
    values = [1.0, 2.0, 4.0, math.nan]
    half = stats.norm.ppf(0.975) * math.sqrt(7 / 9)
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert not mean_interval([1.0, math.nan]).defined


def test_scaling() -> None:
    interval = wilson(1, 2)
    assert interval.scaled(100).high == 100 * interval.high


@pytest.mark.parametrize("counts", [(56, 70, 48, 80), (9, 10, 3, 10), (0, 20, 5, 30)])
def test_unpaired_difference_equals_the_reference(counts: tuple[int, int, int, int]) -> None:
    interval = unpaired_difference(*counts)
    low, high = confint_proportions_2indep(*counts, compare="diff", method="newcomb")
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
    assert not unpaired_difference(0, 0, 1, 2).defined
