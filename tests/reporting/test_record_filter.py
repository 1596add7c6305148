"""Which stored records a filter lets through."""

from __future__ import annotations

import itertools
from dataclasses import fields

import pytest
from record_factory import make_stored

from robench.attacks.suites import load_suite
from robench.errors import UsageError
from robench.reporting.record_filter import ALL, RecordFilter

VALUES = {
    "dataset": ("digits", "toys"),
    "norm": ("Linf", "L2"),
    "eps": ("8/255", "0.031"),
    "n": (3, 4),
    "seed": (0, 1),
}
"""Field → two values that differ."""

POOL = [
    (
        dict(zip(VALUES, choice, strict=True)),
        make_stored(
            "SBS" if choice[3] == 3 else "SBSB",
            dataset=choice[0],
            threat=f"{choice[1]}-{choice[2]}",
            seed=choice[4],
        ),
    )
    for choice in itertools.product(*VALUES.values())
]


def let_through(wanted: RecordFilter) -> list[dict[str, object]]:
    chosen = list(wanted.select(stored for _, stored in POOL))
    return [values for values, stored in POOL if stored in chosen]


def test_every_subset_of_filters_lets_through_exactly_what_agrees_with_it():
    assert {item.name for item in fields(RecordFilter)} == {*VALUES, "suite"}
    for given in itertools.product(*((None, *pair) for pair in VALUES.values())):
        asked = {
            name: value for name, value in zip(VALUES, given, strict=True) if value is not None
        }
        agree = [v for v, _ in POOL if all(v[name] == value for name, value in asked.items())]
        assert let_through(RecordFilter(**asked)) == agree


def test_spellings_of_one_value_are_one_filter():
    assert let_through(RecordFilter(norm="inf")) == let_through(RecordFilter(norm="Linf"))
    assert let_through(RecordFilter(eps="16/510")) == let_through(RecordFilter(eps="8/255"))
    assert RecordFilter(norm="linf") == RecordFilter(norm="Linf")
    assert RecordFilter() == ALL


def test_a_suite_lets_through_its_own_attacks_under_its_names():
    (fgsm, *_) = load_suite("quick").attacks
    renamed = load_suite("quick").model_copy(
        update={"attacks": (fgsm.model_copy(update={"name": "one-step"}),)}
    )
    same = make_stored("SB", attack="fgsm", params=dict(fgsm.params))
    same = same.of(same.record.model_copy(update={"attack": fgsm}), same.samples)
    other = make_stored("SB", attack="fgsm", params={"steps": 7})
    found = list(RecordFilter(suite=renamed).select([same, other]))
    assert [stored.record.attack.name for stored in found] == ["one-step"]
    assert found[0].record.key == same.record.key


@pytest.mark.parametrize("wrong", [{"norm": "L7"}, {"eps": "big"}])
def test_a_filter_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError):
        RecordFilter(**wrong)
