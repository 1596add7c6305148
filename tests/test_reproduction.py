"""Numbers that are found again, that agree, that differ, and of which nobody can tell."""

from __future__ import annotations

import pytest
from invoke_cli import invoke
from record_factory import make_record, make_samples, make_stored

from robench import reproduction
from robench.errors import UsageError
from robench.reproduction import compare_records, exit_code
from robench.request import Request
from robench.results import Store
from robench.statistics import PairedCounts, tango_interval


def by_quantity(claimed, measured):
    return {item.quantity: item for item in compare_records(claimed, measured)}


def test_the_same_verdicts_are_the_same_numbers():
    found = by_quantity([make_stored("SSBC", attack="a")], [make_stored("SSBC", attack="a")])
    assert {name: (f.claimed, f.measured, f.verdict) for name, f in found.items()} == {
        "clean_acc": (75.0, 75.0, "same"),
        "robust_acc": (50.0, 50.0, "same"),
        "a_acc": (50.0, 50.0, "same"),
    }
    assert exit_code(found.values()) == 0


def test_few_other_verdicts_agree_and_many_differ():
    before = "S" * 60 + "B" * 40
    few = "S" * 59 + "B" * 40 + "S"
    found = by_quantity([make_stored(before, attack="a")], [make_stored(few, attack="a")])
    # The same accuracy is not the same verdicts.
    assert (found["a_acc"].verdict, found["a_acc"].samples) == ("agrees", 2)
    many = "S" * 40 + "B" * 60
    found = by_quantity([make_stored(before, attack="a")], [make_stored(many, attack="a")])
    item = found["a_acc"]
    limits = tango_interval(PairedCounts(40, 0, 20, 40)).scaled(100)
    assert (item.verdict, item.samples, item.low, item.high) == (
        *("differs", 20),
        *(pytest.approx(limits.low), pytest.approx(limits.high)),
    )
    assert item.high < 0
    assert exit_code(found.values()) == 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"attack": "b"}, "no record of a"),
        ({"attack": "a", "params": {"steps": 3}}, "other parameters"),
        ({"attack": "a", "data": "b"}, "no such record"),
        ({"attack": "a", "threat": "Linf-0.3"}, "no such record"),
        ({"attack": "a", "seed": 1}, "no such record"),
        ({"attack": "a", "model": "other"}, "no such record"),
    ],
)
def test_of_what_is_not_the_same_thing_nobody_can_tell(other, words):
    claimed = [make_stored("SSBC", attack="a")]
    found = by_quantity(claimed, [make_stored("SSBC", **other)])
    assert found["a_acc"].verdict == found["robust_acc"].verdict == "cannot tell"
    assert words in found["a_acc"].why
    assert found["a_acc"].measured is None
    assert exit_code(found.values()) == 2


def test_other_weights_under_the_name_are_named():
    claimed = make_stored("SSBC", attack="a")
    model = claimed.record.model.model_copy(update={"fingerprint": "0" * 64})
    other = make_stored("SSBC", attack="a")
    object.__setattr__(other, "record", other.record.model_copy(update={"model": model}))
    found = by_quantity([claimed], [other])
    assert "other weights" in found["clean_acc"].why


def test_nothing_is_no_reproduction():
    with pytest.raises(UsageError, match="no records"):
        compare_records([], [])
    assert exit_code([]) == 2


def write(folder, letters):
    samples = make_samples(letters)
    Store(folder).write(make_record(samples, attack="fgsm"), samples)


@pytest.mark.parametrize(("letters", "code"), [("SSSB", 0), ("B" * 4, 1)])
def test_the_command_compares_stored_records(tmp_path, letters, code):
    write(tmp_path / "claimed", "SSSB" * 20)
    write(tmp_path / "mine", letters * 20)
    arguments = ("reproduce", tmp_path / "claimed", "--results", tmp_path / "mine", "--stored")
    done = invoke(*arguments)
    assert done.code == code
    assert (
        done.out.splitlines()[-1] == ("3 numbers: same: 3", "3 numbers: differs: 2, same: 1")[code]
    )
    assert invoke(*arguments, "--json").json[0]["quantity"] == "clean_acc"


def test_what_is_not_here_is_told_not_guessed(tmp_path):
    write(tmp_path / "claimed", "SSSB")
    done = invoke("reproduce", tmp_path / "claimed", "--results", tmp_path / "mine")
    assert done.code == 2
    assert "unknown model 'digits/Linf-0.2/toy'" in done.out


def test_records_lead_to_no_code(tmp_path):
    claimed = make_stored("SSBC", attack="a", kind="evil.module:Attack")
    request = Request(results=tmp_path)
    found = reproduction.reproduce_records([claimed], request)
    assert {item.verdict for item in found} == {"cannot tell"}
    assert "names code, evil.module:Attack" in found[0].why


def test_a_folder_is_not_held_against_itself(tmp_path):
    write(tmp_path / "claimed", "SB")
    done = invoke("reproduce", tmp_path / "claimed", "--results", tmp_path / "claimed")
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    done = invoke("reproduce", "pgd-at", "--stored", "--results", tmp_path / "x")
    assert "Name a results folder" in done.err


def test_a_cards_figures_are_held_against_a_run(tmp_path):
    done = invoke(
        *("reproduce", "digits/Linf-0.2/standard", "--suite", "quick", "-n", 8),
        *("--set", "pgd-20.steps=3"),
        *("--results", tmp_path, "--device", "cpu", "--json"),
    )
    found = {item["quantity"]: item for item in done.json}
    assert found["clean_acc (measured)"]["verdict"] == "agrees"
    assert found["autoattack_acc (measured)"]["why"] == "the suite has no such attack"
    assert done.code == 2
    again = invoke(
        *("reproduce", tmp_path, "--results", tmp_path / "again", "--device", "cpu", "--json")
    )
    assert again.code == 0
    assert {item["verdict"] for item in again.json} == {"same"}
