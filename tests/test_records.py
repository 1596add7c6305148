from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from record_factory import make_record, make_samples

from robench.records import (
    ArchitectureSpec,
    AttackSpec,
    AuditSpec,
    DatasetSpec,
    EvaluationRecord,
    Flag,
    InputSpec,
    MetricSummary,
    ModelCard,
    Outcome,
    SampleOutcome,
    Suite,
    WeightsSpec,
    canonical_hash,
    job_key,
)
from robench.threat_models import NORMS, ThreatModel

SHA = "0" * 64


def _card(**changes: Any) -> ModelCard:
    content: dict[str, Any] = {
        "name": "toy",
        "dataset": "digits",
        "num_classes": 10,
        "threat_model": "Linf-8/255",
        "defense": "pgd_at",
        "architecture": {"name": "digits-resnet", "arguments": {"width": 32}},
        "weights": {"path": "weights.safetensors", "sha256": SHA},
    }
    return ModelCard.model_validate({**content, **changes})


def _spec(**changes: Any) -> AttackSpec:
    content: dict[str, Any] = {"name": "pgd-20", "attack": "pgd", "params": {"steps": 20}}
    return AttackSpec.model_validate({**content, **changes})


def _record() -> EvaluationRecord:
    return make_record(
        make_samples("SSBCE", values={"attention_shift": [0.1, 0.2, 0.3, 0.4, 0.5]}),
        threat="Linf-8/255",
        flags=[Flag(name="zero_gradients", severity="warning", evidence="3 of 5", count=3)],
        metrics={"attention_shift": MetricSummary(mean=0.2, mean_survived=None, n=3)},
    )


@pytest.mark.parametrize("make", [_card, _spec, _record], ids=["card", "spec", "record"])
def test_written_and_read_again_they_are_equal(make: Any) -> None:
    one: BaseModel = make()
    again = type(one).model_validate_json(one.model_dump_json())
    assert again == one
    assert again.model_dump_json() == one.model_dump_json()


def test_undefined_stays_undefined() -> None:
    sample = make_samples("E")[0]
    again = SampleOutcome.model_validate_json(sample.model_dump_json())
    assert again.clean_prediction is None
    assert again.adv_margin is None
    assert math.isnan(SampleOutcome(**{**sample.model_dump(), "adv_margin": math.nan}).adv_margin)  # type: ignore[arg-type]


def test_records_are_frozen_and_refuse_unknown_fields() -> None:
    record = _record()
    with pytest.raises(ValidationError, match="frozen"):
        record.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        _card(wieghts="x")
    with pytest.raises(ValidationError, match="Extra inputs"):
        _spec(restart=3)


def test_counts_are_by_outcome() -> None:
    record = _record()
    assert record.n == 5
    assert record.count(Outcome.SURVIVED) == 2
    assert record.count(Outcome.ERRORED) == 1
    assert make_record(make_samples("SS")).count(Outcome.ERRORED) == 0


def test_the_canonical_hash_is_sha256_of_sorted_json() -> None:
    content = {"b": [1, 2.5, None], "a": {"z": "ü", "y": True}}
    text = '{"a":{"y":true,"z":"\\u00fc"},"b":[1,2.5,null]}'
    assert canonical_hash(content) == hashlib.sha256(text.encode()).hexdigest()
    assert canonical_hash(json.loads(text)) == canonical_hash(content)


# --- identity: a key changes exactly with what changes the numbers ---------------------------


def _data(**changes: Any) -> DatasetSpec:
    content = {"name": "digits", "split": "test", "fingerprint": SHA, "n": 5, "num_classes": 2}
    return DatasetSpec.model_validate({**content, **changes})


def _key(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "model": SHA,
        "dataset": _data(),
        "threat_model": ThreatModel.of("Linf", "8/255"),
        "attack": _spec(),
        "seed": 0,
        "precision": "auto",
        "foreign": {},
    }
    return job_key(**{**arguments, **changes})


def test_audited_jobs_alone_have_new_keys_since_audits_escalate_by_stages() -> None:
    spec = AttackSpec(name="a", stages=(_spec(), _spec(name="b")), audit=AuditSpec(first_stage=1))
    assert _key(attack=spec, revision=6) != _key(attack=spec, revision=7)
    assert _key(revision=5) != _key(revision=6) == _key(revision=7) != _key(revision=8)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "1" * 64},
        {"dataset": _data(fingerprint="1" * 64)},
        {"dataset": _data(masks="1" * 64)},
        {"threat_model": ThreatModel.of("Linf", "0.031")},
        {"threat_model": ThreatModel.of("L2", "8/255")},
        {"attack": _spec(params={"steps": 21})},
        {"attack": _spec(attack="apgd")},
        {"attack": _spec(output="auxiliary")},
        {"attack": _spec(within=0.5)},
        {"seed": 1},
        {"precision": "fp32"},
        {"foreign": {"art:PGD": "art 1.0"}},
    ],
    ids=str,
)
def test_what_changes_the_numbers_changes_the_key(change: dict[str, Any]) -> None:
    assert _key(**change) != _key()


@pytest.mark.parametrize(
    "change",
    [
        {"threat_model": ThreatModel.of("Linf", "16/510")},
        {"attack": _spec(name="another-column")},
        {"attack": _spec(norms=["Linf"])},
        {"dataset": _data(name="renamed", split="validation", class_names=("a", "b"))},
    ],
    ids=str,
)
def test_what_does_not_change_the_numbers_keeps_the_key(change: dict[str, Any]) -> None:
    assert _key(**change) == _key()


def test_a_stage_for_all_survivors_is_keyed_as_before_there_were_others() -> None:
    assert "within" not in _spec().identity


def test_stage_names_key_the_draws_and_so_the_record() -> None:
    one = _spec(attack="cascade", params={}, stages=[_spec(), _spec(name="b")])
    two = _spec(attack="cascade", params={}, stages=[_spec(), _spec(name="c")])
    assert _key(attack=one) != _key(attack=two)


def test_a_fingerprint_follows_the_network_and_not_its_place() -> None:
    card = _card()
    same = [
        _card(name="renamed"),
        _card(defense="other"),
        _card(threat_model="L2-0.5"),
        _card(weights={"path": "elsewhere/w.pt", "sha256": SHA}),
        _card(provenance={"paper": "a paper"}),
    ]
    assert {other.fingerprint for other in same} == {card.fingerprint}
    different = [
        _card(weights={"path": "weights.safetensors", "sha256": "1" * 64}),
        _card(weights={"path": "weights.safetensors", "sha256": SHA, "key": "model"}),
        _card(architecture={"name": "digits-resnet", "arguments": {"width": 16}}),
        _card(input={"channels": 1, "mean": [0.5], "std": [0.5]}),
        _card(forward={"output": [0]}),
        _card(num_classes=11),
    ]
    assert len({card.fingerprint, *(other.fingerprint for other in different)}) == 7
    assert card.id == "digits/Linf-8_255/toy"


# --- what makes no sense is refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "../evil"}, "pattern"),
        ({"name": ""}, "pattern"),
        ({"dataset": "a/b"}, "pattern"),
        ({"num_classes": 1}, "greater than or equal to 2"),
        ({"threat_model": "Linf-8"}, "8/255"),
        ({"weights": {"path": "w", "sha256": "abc"}}, "pattern"),
        ({"input": {"low": 1.0, "high": 0.0}}, "must be above"),
        ({"input": {"mean": [0.1, 0.2]}}, "2 values for 3 channels"),
        ({"input": {"std": [0.0]}}, "must be positive"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_cards_that_cannot_be_meant_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        _card(**changes)


def test_one_mean_serves_all_channels() -> None:
    assert InputSpec(channels=3, mean=(0.5,), std=(0.2,)).mean == (0.5,)
    assert ArchitectureSpec(name="x").arguments == {}
    assert WeightsSpec(path="x", sha256=SHA).strip_prefix == ""


def test_cascades_and_their_stages() -> None:
    with pytest.raises(ValidationError, match="a cascade has stages"):
        AttackSpec(name="a")
    with pytest.raises(ValidationError, match="any other attack has none"):
        AttackSpec(name="a", attack="pgd", stages=(_spec(),))
    with pytest.raises(ValidationError, match="stage names repeat"):
        AttackSpec(name="a", stages=(_spec(), _spec()))
    with pytest.raises(ValidationError, match="not one of its stages"):
        AttackSpec(name="a", stages=(_spec(),), audit=AuditSpec(first_stage=1))
    with pytest.raises(ValidationError, match="no sense for the first stage"):
        AttackSpec(name="a", stages=(_spec(within=0.5), _spec(name="b")))
    with pytest.raises(ValidationError, match="within is for later stages"):
        Suite(name="a", attacks=(_spec(within=0.5),))
    with pytest.raises(ValidationError, match="greater than 0"):
        _spec(within=0)
    stages = (_spec(), _spec(name="l2-only", norms=["L2"]))
    cascade = AttackSpec(name="a", stages=stages)
    names = [[stage.name for stage in cascade.for_norm(norm).stages] for norm in ("Linf", "L2")]
    assert names == [["pgd-20"], ["pgd-20", "l2-only"]]
    with pytest.raises(ValidationError, match="a stage has no stages of its own"):
        AttackSpec(name="b", stages=(cascade,))
    with pytest.raises(ValidationError, match="at least 1"):
        _spec(norms=[])


def test_an_audit_begins_at_its_stage_whichever_stages_a_norm_has() -> None:
    norms = {"a": ["Linf"], "b": ["Linf", "L2"], "c": ["Linf", "L2"], "d": ["L1"]}
    stages = tuple(_spec(name=name, norms=own) for name, own in norms.items())
    spec = AttackSpec(name="x", stages=stages, audit=AuditSpec(first_stage=2))
    found = {norm: spec.for_norm(norm) for norm in NORMS}
    assert [
        (n, [s.name for s in f.stages], f.audit and f.audit.first_stage) for n, f in found.items()
    ] == [
        ("Linf", ["a", "b", "c"], 2),
        ("L2", ["b", "c"], 1),
        ("L1", ["d"], None),
    ]
    only = AttackSpec(name="x", stages=stages[:1])
    assert Suite(name="mine", attacks=(only,)).for_norm("L2") == ()


def test_a_suite_defines_each_column_once_for_a_norm() -> None:
    linf, l2 = _spec(norms=["Linf"]), _spec(norms=["L2"], attack="apgd")
    suite = Suite(name="mine", attacks=(linf, l2))
    assert suite.for_norm("Linf") == (linf,)
    assert suite.for_norm("L2") == (l2,)
    assert suite.for_norm("L1") == ()
    with pytest.raises(ValidationError, match="'pgd-20' twice for Linf"):
        Suite(name="mine", attacks=(linf, _spec()))
    with pytest.raises(ValidationError, match="at least 1"):
        Suite(name="mine", attacks=())
