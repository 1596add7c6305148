"""The registry of tests for masked gradients, and what they may say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError

from robench.doctor.subject import Subject
from robench.records import Diagnosis
from robench.registry import Registry
from robench.threat_models import ThreatModel
from robench.validity.catalogue import Test, diagnose

THREAT = ThreatModel.parse("Linf-0.1")


def _subject(n: int) -> Subject:
    return Subject(cast(Any, SimpleNamespace()), torch.zeros(n, 1, 2, 2), torch.zeros(n).long())


def _counted(subject: Subject, threat_model: ThreatModel, seed: int) -> Diagnosis:
    n = len(subject.labels)
    evidence = f"{n} samples under {threat_model} with seed {seed}"
    return Diagnosis(test="another-name", outcome="sound", evidence=evidence, value=float(n))


def _raises(subject: Subject, threat_model: ThreatModel, seed: int) -> Diagnosis:
    raise RuntimeError("no gradient\nof this kind")


def _registry(**tests: Test) -> Registry[Test]:
    registry: Registry[Test] = Registry("diagnosis")
    for name, test in tests.items():
        registry.add(name, test)
    return registry


def test_a_test_is_given_as_many_samples_as_it_asks_for_and_answers_under_its_name():
    found = diagnose(_subject(9), THREAT, 7, _registry(few=Test(_counted, 4), all=Test(_counted)))
    assert [(d.test, d.value) for d in found] == [("few", 4.0), ("all", 9.0)]
    assert found[0].evidence == f"4 samples under {THREAT} with seed 7"


def test_a_test_that_raises_is_undefined_and_stops_no_other():
    found = diagnose(_subject(2), THREAT, 0, _registry(bad=Test(_raises), good=Test(_counted)))
    assert [d.outcome for d in found] == ["undefined", "sound"]
    assert found[0].evidence == "the test ended with RuntimeError: no gradient"


def test_without_a_correct_sample_no_test_says_anything():
    (found,) = diagnose(_subject(0), THREAT, 0, _registry(any=Test(_counted)))
    assert found.outcome == "undefined"
    assert "no sample is classified correctly" in found.evidence


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.5"])
def test_a_value_is_a_finite_number_or_none(value: object):
    with pytest.raises(ValidationError):
        Diagnosis(test="t", outcome="masked", evidence="e", value=cast(Any, value))


def test_evidence_obeys_no_terminal():
    said = Diagnosis(test="t", outcome="masked", evidence="\x1b[31mred")
    assert "\x1b" not in said.evidence
