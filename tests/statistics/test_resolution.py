from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from robench.errors import UsageError
from robench.statistics import exact, is_resolved

COUNTS = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS, st.sampled_from([0.8, 0.95, 0.99]))
def test_the_exact_interval_is_the_reference_s(counts: tuple[int, int], level: float) -> None:
    hits, n = counts
    found = exact(hits, n, level)
    low, high = proportion_confint(hits, n, 1 - level, "beta")
    assert found.low == pytest.approx(low if hits else 0.0, abs=1e-9)
    assert found.high == pytest.approx(high if hits < n else 1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "fewest"), [(20, 2), (100, 2), (200, 3), (500, 4), (1000, 6), (10_000, 30)]
)
def test_as_many_finds_as_are_no_chance(n: int, fewest: int) -> None:
    assert not is_resolved(fewest - 1, n)
    assert is_resolved(fewest, n)


def test_nothing_is_resolved_without_samples() -> None:
    assert not is_resolved(0, 0)
    assert math.isnan(exact(0, 0).estimate)


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(UsageError):
        exact(3, 2)
