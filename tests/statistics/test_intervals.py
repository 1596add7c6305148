from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from robench.errors import UsageError
from robench.statistics import (
    clopper_pearson,
    missed_share_upper,
    unpaired_difference,
    wilson,
    zero_hit_upper_bound,
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
@pytest.mark.parametrize("ours, theirs", [(wilson, "wilson"), (clopper_pearson, "beta")])
def test_intervals_equal_the_references(hits: int, n: int, ours: object, theirs: str) -> None:
    interval = ours(hits, n)  # type: ignore[operator]
    low, high = proportion_confint(hits, n, 0.05, theirs)
    assert interval.low == pytest.approx(np.nan_to_num(low), abs=1e-9)
    assert interval.high == pytest.approx(np.nan_to_num(high, nan=1.0), abs=1e-9)


@given(COUNTS)
def test_limits_enclose_the_estimate_and_mirror(counts: tuple[int, int]) -> None:
    hits, n = counts
    for method in (wilson, clopper_pearson):
        interval, mirror = method(hits, n), method(n - hits, n)
        assert 0 <= interval.low <= interval.estimate + 1e-12
        assert interval.estimate - 1e-12 <= interval.high <= 1
        assert interval.low == pytest.approx(1 - mirror.high, abs=1e-9)
        assert interval.high > interval.low


def test_nothing_observed_is_undefined() -> None:
    for method in (wilson, clopper_pearson):
        assert not method(0, 0).defined
        assert math.isnan(method(0, 0).low)
    assert math.isnan(zero_hit_upper_bound(0))
    assert math.isnan(missed_share_upper(0, 0, population=9))


@pytest.mark.parametrize("hits, n", [(-1, 5), (6, 5), (0, -1)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    for method in (wilson, clopper_pearson, missed_share_upper):
        with pytest.raises(UsageError, match="impossible"):
            method(hits, n)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_strange_levels_are_refused(level: float) -> None:
    with pytest.raises(UsageError, match="level"):
        wilson(1, 2, level)


@given(st.integers(1, 5000), st.floats(0.5, 0.999))
def test_no_hit_bound_is_its_closed_form(n: int, level: float) -> None:
    assert zero_hit_upper_bound(n, level) == pytest.approx(1 - (1 - level) ** (1 / n), rel=1e-9)


@given(COUNTS)
def test_binomial_bound_leaves_exactly_the_level(counts: tuple[int, int]) -> None:
    hits, n = counts
    bound = missed_share_upper(hits, n)
    if hits == n:
        assert bound == 1
    else:
        assert stats.binom.cdf(hits, n, bound) == pytest.approx(0.05, rel=1e-6)


@settings(max_examples=60)
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
    assert bound <= missed_share_upper(hits, audited) + 1 / population
    if audited == population:
        assert bound == hits / population


def test_audit_larger_than_its_population_is_refused() -> None:
    with pytest.raises(UsageError, match="out of only 5"):
        missed_share_upper(0, 6, population=5)


def test_scaling_and_overlap() -> None:
    interval = wilson(1, 2)
    assert interval.scaled(100).high == 100 * interval.high
    assert interval.overlaps(wilson(2, 3))
    assert not wilson(10, 1000).overlaps(wilson(900, 1000))


@pytest.mark.parametrize("counts", [(56, 70, 48, 80), (9, 10, 3, 10), (0, 20, 5, 30)])
def test_unpaired_difference_equals_the_reference(counts: tuple[int, int, int, int]) -> None:
    interval = unpaired_difference(*counts)
    low, high = confint_proportions_2indep(*counts, compare="diff", method="newcomb")
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9)
    assert not unpaired_difference(0, 0, 1, 2).defined
