"""``robench validate`` and ``robench results check``: what they print, and their exit codes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from invoke_cli import invoke
from record_factory import make_record, make_samples

from robench.models.zoo import find_card
from robench.records import (
    AttackSpec,
    Diagnosis,
    EvaluationRecord,
    Trial,
    Validation,
    canonical_hash,
    validation_key,
)
from robench.results import Store
from robench.results.validations import judgement
from robench.validity import validation

N = 20
MASKED = Diagnosis(test="fidelity", outcome="masked", evidence="apart by 90 %", asks_for=("bpda",))
EOT = Trial(countermeasure="eot", tried=True)
BPDA = Trial(countermeasure="bpda", asked_by=("fidelity",), tried=True, finds=4, lowered_by=20.0)
NONE = Trial(countermeasure="bpda", asked_by=("fidelity",), tried=False, message="not here")


def known(record: EvaluationRecord, diagnoses: list[Diagnosis], trials: list[Trial]) -> Validation:
    judged = judgement(diagnoses, trials, n=N, robust=10)
    finds = sum(trial.finds for trial in trials)
    protocol = canonical_hash("protocol")
    return Validation(
        key=validation_key(record.model.fingerprint, [record.key], protocol),
        model=record.model,
        dataset=record.dataset,
        threat_model=record.threat_model,
        suite="quick",
        seed=0,
        precision="auto",
        base=(record.key,),
        protocol=protocol,
        robust_acc=50.0,
        best_known_acc=50.0 - 5.0 * finds,
        lowered_by=5.0 * finds,
        verdict=judged.verdict,
        reasons=judged.reasons,
        diagnoses=tuple(diagnoses),
        trials=tuple(trials),
        created="2026-01-02T03:04:05Z",
    )


@pytest.mark.parametrize(
    ("diagnoses", "trials", "verdict", "code"),
    [
        ([], [EOT], "STANDS", 0),
        ([MASKED], [BPDA], "LOWERED", 1),
        ([MASKED], [NONE], "UNRELIABLE", 1),
    ],
)
def test_the_verdict_with_what_was_seen_and_tried(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    diagnoses: list[Diagnosis],
    trials: list[Trial],
    verdict: str,
    code: int,
) -> None:
    made = known(make_record(make_samples("SB" * 10)), diagnoses, trials)
    monkeypatch.setattr(validation, "validate", lambda *_: [made])
    done = invoke("validate", "pgd-at", "--n", 2, "--results", tmp_path, "--no-plots")
    assert done.code == code
    assert f"{verdict}: 50.0 % robust" in done.out
    for item in diagnoses:
        assert item.evidence in done.out
    for trial in trials:
        assert trial.countermeasure in done.out
        assert trial.tried or f"not tried: {trial.message}" in done.out


def test_a_model_that_does_not_load_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = known(make_record(make_samples("SB" * 10)), [], [EOT])
    monkeypatch.setattr(validation, "validate", lambda *_: [made])
    folder = tmp_path / "standard"
    folder.mkdir()
    shutil.copy(find_card("digits/Linf-0.2/standard").path, folder)
    several = "validate", folder, "pgd-at", "--n", 2, "--results", tmp_path / "r", "--no-plots"
    done = invoke(*several, "--json")
    assert done.code == 2
    (left_out,) = done.json["left_out"]
    assert left_out.startswith("digits/Linf-0.2/standard: ")
    assert "warning: left out digits/Linf-0.2/standard" in done.err
    assert len(done.json["validations"]) == 1
    # Alone it is an error.
    assert invoke("validate", folder, "--n", 2, "--results", tmp_path / "r").code == 2


def test_validating_targeted_attacks_is_refused_before_any(tmp_path: Path) -> None:
    aimed = "--validate", "--goal", "targeted", "--targets", "next", "--results", tmp_path
    done = invoke("run", "pgd-at", "--n", 2, *aimed)
    assert done.code == 2
    assert "not against targets" in done.err


@pytest.mark.parametrize(("letters", "code"), [("B" * 60 + "S" * 40, 1), ("B" * 2 + "S" * 98, 0)])
def test_rules_over_the_records_of_a_folder(tmp_path: Path, letters: str, code: int) -> None:
    store = Store(tmp_path)
    for steps, found in ((1, letters), (20, "S" * 100)):
        spec: Any = AttackSpec(name=f"pgd-{steps}", attack="pgd", params={"steps": steps})
        samples = make_samples(found)
        samples = [
            s.model_copy(update={"broken_by": spec.name if s.broken_by else None}) for s in samples
        ]
        store.write(make_record(samples, spec=spec, attack=spec.name), samples)
    done = invoke("results", "check", tmp_path)
    assert done.code == code, done.err
    assert ("one_step_beats_many" in done.out) == bool(code)
    found = invoke("results", "check", tmp_path, "--json").json
    assert (len(found["contradictions"]), found["records"]) == (code, 2)
