"""Numbers that are found again, that agree, that differ, and of which nobody can tell."""

from __future__ import annotations

from collections import Counter

import pytest
from invoke_cli import invoke
from record_factory import make_record, make_samples, make_stored

from robench import reproduction
from robench.attacks.suites import load_suite
from robench.errors import UsageError
from robench.records import AttackSpec, Flag, Outcome
from robench.reproduction import compare_records, exit_code
from robench.request import Request
from robench.results import Store, StoredRecord
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


PGD = AttackSpec(name="a", attack="pgd", params={"steps": 3})


def turned(stored):
    """The record with another verdict on one of its samples."""
    samples, other = list(stored.samples), {"broken": "survived", "survived": "broken"}
    place = next(i for i, row in enumerate(samples) if row.outcome.value in other)
    outcome = Outcome(other[samples[place].outcome.value])
    samples[place] = samples[place].model_copy(update={"outcome": outcome})
    counts = dict(Counter(row.outcome for row in samples))
    return StoredRecord.of(stored.record.model_copy(update={"counts": counts}), samples)


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
    assert {(item["n"], item["of"]) for item in again.json} == {(8, 8)}
    # Five of the eight are attacked alone, and have the very verdicts that they have among eight.
    some = ("reproduce", tmp_path, "--results", tmp_path / "some", "-n", 5)
    fewer = invoke(*some, "--device", "cpu", "--json")
    assert fewer.code == 0
    assert {(item["n"], item["of"], item["verdict"]) for item in fewer.json} == {(5, 8, "same")}
    assert "the same 5 of 8 samples" in fewer.json[0]["under"]
    assert invoke(*some, "--stored", "--json").json == fewer.json
    assert invoke(*some, "--stored").out.endswith("of the other 3 they say nothing.\n")
    claimed = list(Store(tmp_path).records())
    measured = [turned(stored) for stored in Store(tmp_path / "some").records()]
    found = compare_records(claimed, measured, Request(n=5))
    assert {item.quantity: item.samples for item in found}["fgsm_acc"] == 1


def test_the_worst_case_is_over_what_was_claimed_of():
    claimed = [make_stored("SSBC", attack="a")]
    more = [*claimed, make_stored("BBBC", attack="b")]
    found = by_quantity(claimed, more)
    assert {item.verdict for item in found.values()} == {"same"}
    # The other way round an attack lacks, and with it the worst case.
    found = by_quantity(more, claimed)
    assert found["a_acc"].verdict == "same"
    assert found["robust_acc"].why == found["b_acc"].why == "there is no record of b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("claimd",), "unknown results folder, model or paper 'claimd'. Did you mean 'claimed'"),
        (("ancr",), "Did you mean 'ancra'"),
        (("claimed", "-n", 0), "n = 0, but the claims are of 2 samples at most. Choose n from 1"),
        (("claimed", "--results", "file"), "file: cannot be written"),
        (("ancra", "--results", "nowhere"), "nowhere: there is no such results folder"),
        (("empty", "--stored"), "empty: there are no records to reproduce"),
        (("pgd-at", "--eps", "0.1,0.2"), "--eps holds 2 radii"),
    ],
)
def test_wrong_claims_are_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "claimed", "SB")
    (tmp_path / "empty/records").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    done = invoke("reproduce", *arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert words in done.err


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"spec": PGD}, "digits here has other samples"),
        ({"attack": "a", "dataset": "elsewhere"}, "unknown data set 'elsewhere'"),
        ({"attack": "a", "kind": "evil.module:Attack"}, "names code, evil.module:Attack"),
        (
            {"spec": load_suite("fast").attacks[0]},
            "3 of 4 samples say nothing, as fast has an audit",
        ),
        (
            {"spec": PGD, "flags": [Flag(name="randomised", severity="warning", evidence="")]},
            "the model is randomised",
        ),
    ],
)
def test_some_samples_are_not_held_against_what_depends_on_others(about, words):
    claimed = [make_stored("SSBC", **about)]
    found = compare_records(claimed, [make_stored("SSB", **about)], Request(n=3))
    assert {item.verdict for item in found} == {"cannot tell"}
    assert words in found[0].why


def test_more_samples_than_were_claimed_of_are_refused():
    claimed = [make_stored("SSBC", attack="a")]
    with pytest.raises(UsageError, match="n = 5, but the claims are of 4 samples at most"):
        compare_records(claimed, claimed, Request(n=5))
    assert exit_code(compare_records(claimed, claimed, Request(n=4))) == 0


@pytest.mark.parametrize(
    ("claim", "options", "words"),
    [
        ("ancra", ("--n", 5), "--n says nothing here: of a paper nothing is run"),
        ("aerp", ("--suite", "quick"), "--suite says nothing here: of a paper nothing is run"),
        ("claimed", ("--eps", "0.1"), "--eps says nothing here: data, attacks, eps and seed are"),
        ("claimed", ("--set", "pgd-20.steps=3"), "--set says nothing here"),
        ("claimed", ("--stored", "--workers", 2), "--workers says nothing here: with --stored"),
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path, claim, options, words):
    write(tmp_path / "claimed", "SB")
    write(tmp_path / "mine", "SB")
    place = tmp_path / claim if claim == "claimed" else claim
    done = invoke("reproduce", place, "--results", tmp_path / "mine", *options)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert words in done.err
