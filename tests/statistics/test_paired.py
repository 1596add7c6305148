from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests

from robench.errors import UsageError
from robench.statistics import (
    PairedCounts,
    bootstrap_mean,
    bootstrap_worst_class,
    holm,
    mcnemar,
    tango_interval,
)

CELLS = st.integers(0, 200)
COUNTS = st.builds(PairedCounts, CELLS, CELLS, CELLS, CELLS).filter(lambda c: c.n > 0)


def swapped(counts: PairedCounts) -> PairedCounts:
    return PairedCounts(counts.both, counts.only_second, counts.only_first, counts.neither)


def score(counts: PairedCounts, delta: float) -> float:
    """Tango's statistic with the nuisance parameter found by brute force on the likelihood."""
    n, b, c = counts.n, counts.only_first, counts.only_second
    grid = np.linspace(max(0.0, -delta), (1 - delta) / 2, 200_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [
            np.where(count == 0, 0.0, count * np.log(share))
            for count, share in ((b, grid + delta), (c, grid), (n - b - c, 1 - 2 * grid - delta))
        ]
    best = grid[np.nanargmax(sum(terms))]
    return float((b - c - n * delta) / math.sqrt(n * (2 * best + delta - delta**2)))


@given(COUNTS)
def test_exact_mcnemar_equals_the_reference(counts: PairedCounts) -> None:
    table = [[counts.both, counts.only_first], [counts.only_second, counts.neither]]
    reference = reference_mcnemar(table, exact=True).pvalue if counts.discordant else 1.0
    assert mcnemar(counts) == pytest.approx(min(1.0, reference), rel=1e-9)
    assert mcnemar(counts) == pytest.approx(mcnemar(swapped(counts)), rel=1e-9)


def test_one_sided_mcnemar_is_a_tail_of_the_coin() -> None:
    counts = PairedCounts(0, 8, 2, 0)
    assert mcnemar(counts, "greater") == pytest.approx((1 + 10 + 45) / 1024)
    assert mcnemar(counts, "less") == pytest.approx(1 - (1 + 10) / 1024)


@pytest.mark.parametrize(
    "cells", [(80, 5, 9, 6), (430, 12, 20, 38), (0, 3, 3, 0), (1, 0, 4, 1), (50, 7, 0, 43)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_tango_limits_are_where_the_score_test_turns(
    cells: tuple[int, int, int, int], level: float
) -> None:
    counts = PairedCounts(*cells)
    interval = tango_interval(counts, level)
    z = stats.norm.ppf((1 + level) / 2)
    assert score(counts, interval.low) == pytest.approx(z, rel=1e-3)
    assert score(counts, interval.high) == pytest.approx(-z, rel=1e-3)


def test_tango_without_disagreement_is_its_closed_form() -> None:
    counts = PairedCounts(300, 0, 0, 200)
    z2 = stats.norm.ppf(0.975) ** 2
    interval = tango_interval(counts)
    assert (interval.low, interval.high) == pytest.approx((-z2 / (500 + z2), z2 / (500 + z2)))
    tiny = tango_interval(PairedCounts(300, 0, 1, 199))
    assert tiny.low < interval.low < 0 < tiny.high < interval.high


def test_tango_where_one_is_always_better_is_its_closed_form() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    interval = tango_interval(PairedCounts(0, 10, 0, 0))
    assert interval.low == pytest.approx((10 - z2) / (10 + z2))
    assert interval.high == 1


@given(COUNTS)
def test_paired_intervals_mirror_and_enclose(counts: PairedCounts) -> None:
    one, two = tango_interval(counts), tango_interval(swapped(counts))
    assert one.low == pytest.approx(-two.high, abs=1e-7)
    assert -1 <= one.low <= one.estimate <= one.high <= 1


def test_tango_is_close_to_newcombes_published_example() -> None:
    # Newcombe 1998, table III, method 10, another score interval: (36, 12, 2, 0) → 0.0569 … 0.3404.
    interval = tango_interval(PairedCounts(36, 12, 2, 0))
    assert (interval.low, interval.high) == pytest.approx((0.0569, 0.3404), abs=0.01)


def test_no_samples_is_undefined() -> None:
    empty = PairedCounts(0, 0, 0, 0)
    assert math.isnan(empty.difference)
    assert not tango_interval(empty).defined
    assert not bootstrap_mean([]).defined
    assert not bootstrap_mean([math.nan, math.nan, 1.0]).defined


def test_counting() -> None:
    counts = PairedCounts.of([1, 1, 0, 0, 1], [1, 0, 1, 0, 0])
    assert counts == PairedCounts(1, 2, 1, 1)
    assert counts.difference == pytest.approx(0.2)
    with pytest.raises(UsageError, match="shapes"):
        PairedCounts.of([1, 0], [1])
    with pytest.raises(UsageError, match="negative"):
        PairedCounts(1, -1, 0, 0)


def test_holm_by_hand() -> None:
    """4 times the least, 3 times the next, 2, 1; none below the one before, none above 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.2]) == pytest.approx([0.7, 0.4])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.slow  # the reference takes a tenth of a second
@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_equals_the_reference(p_values: list[float]) -> None:
    reference = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(p_values), reference, rtol=1e-12)


def test_holm_leaves_out_tests_that_were_not_made() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.04)
    assert holm([]) == []
    with pytest.raises(UsageError, match=r"\[0, 1\]"):
        holm([1.5])


def test_bootstrap_mean_is_near_the_t_interval_and_repeats() -> None:
    values = np.random.default_rng(3).normal(0.2, 1.0, 400)
    interval = bootstrap_mean(values)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert interval.low == pytest.approx(low, abs=0.01)
    assert interval.high == pytest.approx(high, abs=0.01)
    assert bootstrap_mean(values) == interval
    gaps = np.insert(values, 7, math.nan)
    assert bootstrap_mean(gaps) == interval


def test_bootstrap_of_equal_differences_is_a_point() -> None:
    interval = bootstrap_mean(np.zeros(50))
    assert (interval.low, interval.estimate, interval.high) == (0, 0, 0)


def test_worst_class_bootstrap_is_resampling_inside_classes() -> None:
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1, 2], [30, 40, 50])
    first = rng.random(120) < np.array([0.5, 0.6, 0.9])[labels]
    second = rng.random(120) < np.array([0.8, 0.5, 0.6])[labels]
    members = [np.flatnonzero(labels == label) for label in range(3)]
    brute = []
    for _ in range(4000):
        drawn = [rng.choice(m, len(m)) for m in members]
        brute.append(min(first[d].mean() for d in drawn) - min(second[d].mean() for d in drawn))
    draws = bootstrap_worst_class(
        [PairedCounts.of(first[m], second[m]) for m in members], resamples=4000
    )
    assert draws.mean() == pytest.approx(np.mean(brute), abs=0.01)
    assert stats.ks_2samp(draws, brute).pvalue > 0.001


def test_worst_class_bootstrap_edges() -> None:
    same = [PairedCounts(5, 0, 0, 5), PairedCounts(0, 0, 0, 0)]
    np.testing.assert_array_equal(bootstrap_worst_class(same, resamples=9), np.zeros(9))
    assert np.isnan(bootstrap_worst_class([], resamples=9)).all()
    one = bootstrap_worst_class([PairedCounts(3, 4, 2, 1)], resamples=50)
    np.testing.assert_array_equal(
        one, bootstrap_worst_class([PairedCounts(3, 4, 2, 1)], resamples=50)
    )
