"""Validations on disk, and the verdict that follows from their parts."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from record_factory import make_record, make_samples

from robench.errors import CorruptRecordError, StoreError
from robench.inspection.verification import verify_store
from robench.records import (
    Diagnosis,
    EvaluationRecord,
    Trial,
    Validation,
    canonical_hash,
    validation_key,
)
from robench.request import Request
from robench.results import Store
from robench.results.validations import ERRORED, Validations, judgement, read_validation
from robench.threat_models import ThreatModel

N = 200
SOUND = Diagnosis(test="fidelity", outcome="sound", evidence="fine")
MASKED = Diagnosis(test="fidelity", outcome="masked", evidence="apart", asks_for=("bpda", "eot"))
SEVERE = MASKED.model_copy(update={"severe": True})
JUMPS = Diagnosis(test="continuity", outcome="masked", evidence="jumps", asks_for=("bpda",))
STEPS = JUMPS.model_copy(update={"test": "stability"})
COARSE = JUMPS.model_copy(update={"test": "resolution"})
FOREIGN = JUMPS.model_copy(update={"test": "mine"})
HOPELESS = Diagnosis(test="batch_dependent", outcome="masked", evidence="it is", severe=True)


def tried(name: str, finds: int = 0) -> Trial:
    return Trial(countermeasure=name, tried=True, finds=finds, lowered_by=100 * finds / N)


NOT_TRIED = Trial(countermeasure="bpda", tried=False, message="every module is faithful")


@pytest.mark.parametrize(
    ("verdict", "diagnoses", "trials"),
    [
        ("stands", [SOUND], []),
        ("stands", [SOUND], [tried("scale-free")]),
        ("stands", [SOUND], [tried("scale-free", 2)]),
        ("lowered", [SOUND], [tried("scale-free", 3)]),
        ("lowered", [SOUND], [tried("scale-free", 1), tried("restarts", 2)]),
        ("lowered", [MASKED], [tried("bpda", 30)]),
        ("lowered", [SEVERE], [NOT_TRIED, tried("eot", 30)]),
        ("stands", [MASKED], [tried("bpda"), tried("eot")]),
        ("stands", [MASKED], [NOT_TRIED, tried("eot")]),
        ("unreliable", [SEVERE], [tried("bpda"), tried("eot")]),
        # Two independent signs; what one kind says twice, or a loss without a scale answers, is none.
        ("unreliable", [MASKED, JUMPS], [tried("bpda"), tried("eot", 2)]),
        ("unreliable", [FOREIGN, STEPS], [tried("bpda")]),
        ("stands", [JUMPS, STEPS], [tried("bpda")]),
        ("stands", [JUMPS, COARSE], [tried("bpda")]),
        ("lowered", [MASKED, JUMPS], [tried("bpda", 30)]),
        ("unreliable", [MASKED], []),
        ("unreliable", [MASKED], [NOT_TRIED, tried("scale-free", 30)]),
        ("unreliable", [HOPELESS], [tried("scale-free", 30)]),
        # Below 0 there is nothing.
        ("lowered", [HOPELESS], [tried("scale-free", 100)]),
    ],
)
def test_the_verdict(verdict: str, diagnoses: list[Diagnosis], trials: list[Trial]):
    assert judgement(diagnoses, trials, n=N, robust=100).verdict == verdict


def test_a_number_that_is_0_stands_whatever_is_masked():
    for masked in ([SEVERE], [MASKED, JUMPS]):
        assert judgement(masked, [tried("eot")], n=N, robust=0).verdict == "stands"


def test_samples_without_a_verdict_make_any_number_unreliable():
    failed = HOPELESS.model_copy(update={"test": ERRORED})
    for robust in (0, 1, N):
        judged = judgement([failed, SEVERE], [tried("eot", robust)], n=N, robust=robust)
        assert judged.verdict == "unreliable"
        assert "errored_samples: nothing can be tried against it" in judged.reasons


def test_of_a_number_that_came_down_to_0_nothing_is_left_to_doubt():
    for masked in ([SEVERE], [MASKED, JUMPS]):
        assert judgement(masked, [tried("bpda", 1)], n=N, robust=1).verdict == "stands"
        assert judgement(masked, [tried("bpda", 1)], n=N, robust=2).verdict == "unreliable"


def test_the_reasons_say_what_could_not_be_tried_and_by_how_much_it_is_lower():
    lowered = judgement([SOUND], [tried("scale-free", 4), tried("eot", 6)], n=N, robust=100)
    assert lowered.reasons == (
        "countermeasures broke 10 more of 200 samples (scale-free 4, eot 6): 5.0 points, 95 % "
        "interval 2.42 to 9.00",
    )
    assert judgement([MASKED], [NOT_TRIED], n=N, robust=9).reasons == (
        "fidelity: bpda, eot could not be tried",
    )


def _validation(record: EvaluationRecord, **changes: Any) -> Validation:
    content: dict[str, Any] = {
        "model": record.model,
        "dataset": record.dataset,
        "threat_model": record.threat_model,
        "suite": "quick",
        "seed": 0,
        "precision": "auto",
        "base": (record.key,),
        "protocol": canonical_hash("protocol"),
        "robust_acc": 50.0,
        "best_known_acc": 40.0,
        "lowered_by": 10.0,
        "verdict": "lowered",
        "diagnoses": (SOUND,),
        "trials": (Trial(countermeasure="eot", tried=True, finds=2, lowered_by=10.0),),
        "created": "2026-01-02T03:04:05Z",
    } | changes
    key = validation_key(content["model"].fingerprint, content["base"], content["protocol"])
    judged = judgement(content["diagnoses"], content["trials"], n=20, robust=10)
    return Validation(key=key, reasons=judged.reasons, **content)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Store, EvaluationRecord]:
    store, samples = Store(tmp_path), make_samples("SB" * 10)
    record = make_record(samples)
    store.write(record, samples)
    return store, record


def test_what_is_written_is_read_equal(stored: tuple[Store, EvaluationRecord]):
    store, record = stored
    validation = _validation(record)
    Validations(store).write(validation)
    assert Validations(store).find(validation.key) == validation
    assert list(Validations(store).all()) == [validation]


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "stands"},
        {"best_known_acc": 50.0},
        {"lowered_by": 0.0},
        {"robust_acc": 55.0},
        {"reasons": []},
        {"key": "0" * 64},
    ],
)
def test_no_hand_betters_a_verdict(
    stored: tuple[Store, EvaluationRecord], change: dict[str, Any], caplog: Any
):
    """Not even one that makes the checksum anew."""
    store, record = stored
    path = Validations(store).write(_validation(record))
    document = json.loads(path.read_text())
    document.pop("checksum")
    document["validation"] |= change
    document["checksum"] = canonical_hash(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptRecordError):
        read_validation(path)
    assert list(Validations(store).all()) == []
    assert Validations(store).find(path.stem) is None
    assert not path.exists()
    assert len(list((store.folder / "quarantine").glob("*/reason.txt"))) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": "robench-validation"}'])
def test_damage_is_told_and_set_aside(stored: tuple[Store, EvaluationRecord], content: bytes):
    store, record = stored
    path = Validations(store).write(_validation(record))
    path.write_bytes(content)
    assert Validations(store).find(path.stem) is None
    assert not path.exists()


def test_one_that_contradicts_itself_is_not_written(stored: tuple[Store, EvaluationRecord]):
    store, record = stored
    with pytest.raises(StoreError, match="contradicts itself"):
        Validations(store).write(_validation(record, best_known_acc=50.0))


def test_a_validation_of_another_model_s_record_is_left_out_by_name(
    stored: tuple[Store, EvaluationRecord], caplog: pytest.LogCaptureFixture
):
    store, record = stored
    samples = make_samples("SB" * 10)
    other = make_record(samples, model="other")
    with caplog.at_level(logging.WARNING):
        Validations(store).write(_validation(record, model=other.model))
        Validations(store).write(_validation(other))
        assert list(Validations(store).all()) == []
    assert "digits/Linf-0.2/other is of another model's record" in caplog.text
    assert "digits/Linf-0.2/other is of a record that is not here" in caplog.text


@pytest.fixture
def tried_too(stored: tuple[Store, EvaluationRecord]) -> tuple[Store, Validation]:
    """A validation whose countermeasures broke two of the ten survivors, with their record."""
    store, record = stored
    samples = make_samples("BB" * 2 + "SB" * 8)
    countermeasures = make_record(samples, attack="countermeasures")
    store.write(countermeasures, samples)
    trial = tried("eot", 2).model_copy(update={"key": countermeasures.key, "lowered_by": 10.0})
    return store, _validation(record, trials=(trial,))


def test_what_its_records_bear_out_holds(tried_too: tuple[Store, Validation]):
    store, validation = tried_too
    validations = Validations(store)
    validations.check(validation, validations.write(validation))
    (found,) = (v for v in verify_store(store, Request()) if v.attack == "(validation)")
    assert found.sound
    assert found.finding == "lowered: agrees with its 2 records"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"robust_acc": 60.0, "best_known_acc": 50.0}, "10 samples survive .*, not 12"),
        ({"seed": 1}, "under another threat model or seed"),
        ({"threat_model": ThreatModel.of("Linf", "0.3")}, "under another threat model or seed"),
        ({"finds": 3}, "has 2 new finds, not 3"),
        ({"finds": 0}, "has 2 new finds, not 0"),
        ({"key": "0" * 64}, "a record that is not here"),
        ({"data": "b"}, "is of other samples"),
    ],
)
def test_one_that_contradicts_its_records_is_named(
    tried_too: tuple[Store, Validation], change: dict[str, Any], said: str
):
    """Whole in itself, checksum and verdict included."""
    store, validation = tried_too
    trial = validation.trials[0]
    if "finds" in change:
        finds = change["finds"]
        told = trial.model_copy(update={"finds": finds, "lowered_by": 5.0 * finds})
        change = {"best_known_acc": 50.0 - 5 * finds, "lowered_by": 5.0 * finds, "trials": (told,)}
    elif "key" in change:
        change = {"trials": (trial.model_copy(update=change),)}
    elif "data" in change:
        data = make_record(make_samples("SB" * 10), data=change["data"]).dataset
        change = {"dataset": data}
    told = validation.model_copy(update=change)
    judged = judgement(told.diagnoses, told.trials, n=20, robust=round(told.robust_acc / 5))
    told = told.model_copy(update={"verdict": judged.verdict, "reasons": judged.reasons})
    path = Validations(store).write(told)
    (found,) = (v for v in verify_store(store, Request()) if v.attack == "(validation)")
    assert not found.sound
    assert (found.key, found.model) == (path.stem, validation.model.id)
    assert re.search(said, found.finding)
