"""Which stored records a filter lets through."""

from __future__ import annotations

import itertools
from dataclasses import fields
from functools import cache

import pytest
from record_factory import make_stored

from robench.errors import UsageError
from robench.results import RecordFilter
from robench.results.stored_record import StoredRecord

VALUES = {
    "dataset": ("digits", "toys"),
    "norm": ("Linf", "L2"),
    "eps": ("8/255", "0.031"),
    "n": (3, 4),
    "seed": (0, 1),
    "goal": ("untargeted", "targeted"),
}
"""Field → two values that differ."""


@cache
def pool() -> list[tuple[dict[str, object], StoredRecord]]:
    """One record for each combination of values."""
    return [
        (
            dict(zip(VALUES, choice, strict=True)),
            make_stored(
                "SBS" if choice[3] == 3 else "SBSB",
                dataset=choice[0],
                threat=f"{choice[1]}-{choice[2]}{'-targeted-next' if choice[5] == 'targeted' else ''}",
                seed=choice[4],
            ),
        )
        for choice in itertools.product(*VALUES.values())
    ]


def let_through(wanted: RecordFilter) -> list[dict[str, object]]:
    return [values for values, stored in pool() if wanted.matches(stored.record)]


def test_every_subset_of_filters_lets_through_exactly_what_agrees_with_it():
    # Targets are of one goal alone, and have a test of their own.
    assert {item.name for item in fields(RecordFilter)} == {*VALUES, "targets"}
    subsets = itertools.product((False, True), repeat=len(VALUES))
    for given, place in itertools.product(subsets, (0, 1)):
        asked = {
            name: VALUES[name][place] for name, wanted in zip(VALUES, given, strict=True) if wanted
        }
        agree = [v for v, _ in pool() if all(v[name] == value for name, value in asked.items())]
        assert let_through(RecordFilter(**asked)) == agree


def test_spellings_of_one_value_are_one_filter():
    assert let_through(RecordFilter(norm="inf")) == let_through(RecordFilter(norm="Linf"))
    assert let_through(RecordFilter(eps="16/510")) == let_through(RecordFilter(eps="8/255"))


def test_several_radii_let_through_what_any_of_them_does():
    either = let_through(RecordFilter(eps="0.031,8/255"))
    assert either == [values for values, _ in pool()]
    assert let_through(RecordFilter(eps="0,0.031")) == let_through(RecordFilter(eps="0.031"))


@pytest.mark.parametrize("wrong", [{"norm": "L7"}, {"eps": "big"}, {"eps": "0.2,0.1"}])
def test_a_filter_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        RecordFilter(**wrong)
