from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robench import seeding

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
INT64 = st.integers(-(2**63), 2**63 - 1)


def _finaliser(z: int) -> int:
    z &= MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def _signed(z: int) -> int:
    z &= MASK
    return z - (1 << 64) if z >> 63 else z


def _derived(key: int, *tags: int) -> int:
    for item in tags:
        key = _finaliser(((key + GAMMA) & MASK) ^ _finaliser(item + GAMMA))
    return _signed(key)


@settings(deadline=None)
@given(INT64)
def test_the_mixer_is_splitmix64s_finaliser(value: int) -> None:
    assert seeding.mix(torch.tensor([value])).tolist() == [_signed(_finaliser(value))]


@settings(deadline=None)
@given(INT64, st.lists(INT64, min_size=1, max_size=4))
def test_keys_are_derived_as_written_in_plain_integers(key: int, tags: list[int]) -> None:
    assert seeding.derive(torch.tensor([key]), *tags).tolist() == [_derived(key, *tags)]


@settings(deadline=None)
@given(INT64, st.integers(1, 40))
def test_uniform_draws_are_the_top_24_bits(key: int, count: int) -> None:
    expected = [
        (_finaliser((key + (position + 1) * GAMMA) & MASK) >> 40) / 2**24
        for position in range(count)
    ]
    assert seeding.uniform(torch.tensor([key]), (count,)).tolist() == [expected]


def test_the_published_first_numbers_of_splitmix64() -> None:
    # Vigna's reference program, seeded with 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    drawn = seeding._bits(torch.tensor([1234567]), (3,)).flatten().tolist()
    assert [value & MASK for value in drawn] == expected


def test_numbers_never_change() -> None:
    """Frozen: another value here means that no old record can be reproduced."""
    keys = seeding.sample_keys(0, ["digits/test/0", "digits/test/1"])
    assert seeding.tag("pgd") == FROZEN["tag"]
    assert keys.tolist() == FROZEN["keys"]
    assert seeding.derive(keys, seeding.tag("pgd"), 0).tolist() == FROZEN["derived"]
    assert seeding.uniform(keys, (2,)).mul(2**24).long().flatten().tolist() == FROZEN["uniform"]
    assert seeding.signs(keys, (6,)).long().flatten().tolist() == FROZEN["signs"]
    assert seeding.integers(keys, 1000, (3,)).flatten().tolist() == FROZEN["integers"]


FROZEN: dict[str, object] = {
    "tag": 5835559443381052490,
    "keys": [-2289286946040252357, -9142516082941244131],
    "derived": [5067214405061759312, -6017615931590090761],
    "uniform": [6851649, 3490506, 9319068, 10538036],
    "signs": [-1, -1, 1, -1, -1, -1, 1, 1, -1, 1, 1, -1],
    "integers": [408, 208, 601, 555, 628, 179],
}


@pytest.fixture(scope="module")
def keys() -> torch.Tensor:
    return seeding.sample_keys(7, [f"sample-{index}" for index in range(400)])


def test_uniform_draws_are_uniform(keys: torch.Tensor) -> None:
    drawn = seeding.uniform(keys, (50,))
    assert bool((drawn >= 0).all() & (drawn < 1).all())
    assert stats.kstest(drawn.flatten().numpy(), "uniform").pvalue > 1e-3
    # Across samples at one position, where a weak key schedule would show.
    assert stats.kstest(drawn[:, 0].numpy(), "uniform").pvalue > 1e-3


def test_normal_draws_are_normal(keys: torch.Tensor) -> None:
    drawn = seeding.normal(keys, (50,))
    assert bool(drawn.isfinite().all())
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3


def test_signs_are_fair_and_integers_even(keys: torch.Tensor) -> None:
    drawn = seeding.signs(keys, (50,))
    assert set(drawn.flatten().tolist()) == {-1.0, 1.0}
    assert stats.binomtest(int((drawn > 0).sum()), drawn.numel()).pvalue > 1e-3
    counts = torch.bincount(seeding.integers(keys, 7, (50,)).flatten(), minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert len(counts) == 7


@pytest.mark.parametrize("purpose", [0, 1, 5, 1 << 40])
def test_neighbouring_purposes_are_uncorrelated(keys: torch.Tensor, purpose: int) -> None:
    one = seeding.uniform(seeding.derive(keys, purpose), (20,)).flatten()
    two = seeding.uniform(seeding.derive(keys, purpose + 1), (20,)).flatten()
    bound = 4 / math.sqrt(one.numel())
    assert abs(float(torch.corrcoef(torch.stack((one, two)))[0, 1])) < bound
    assert not torch.equal(one, two)


def test_seeds_and_samples_get_distinct_keys() -> None:
    ids = [f"sample-{index}" for index in range(1000)]
    keys = torch.cat([seeding.sample_keys(seed, ids) for seed in (0, 1, 2, -1)])
    assert len(set(keys.tolist())) == len(keys)


@settings(deadline=None)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_draws_do_not_depend_on_order_or_batch(order: list[int], size: int) -> None:
    keys = seeding.sample_keys(3, [f"s{index}" for index in range(9)])
    for draw in (seeding.uniform, seeding.normal, seeding.signs):
        whole = draw(keys, (2, 3))
        permuted = torch.cat([draw(part, (2, 3)) for part in keys[order].split(size)])
        assert torch.equal(permuted, whole[order])


def test_tags_may_differ_by_row() -> None:
    keys = seeding.sample_keys(3, ["a", "b"])
    rows = seeding.derive(keys, torch.tensor([4, 9]))
    assert rows[0] == seeding.derive(keys, 4)[0]
    assert rows[1] == seeding.derive(keys, 9)[1]


def test_a_single_choice_is_drawn_from_empty_and_unit_ranges(keys: torch.Tensor) -> None:
    for high in (0, 1):
        assert not bool(seeding.integers(keys, high, (3,)).any())
