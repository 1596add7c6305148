"""Stages, the audit of the core protocol, and attacks on other outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.attacks.suites import load_suite
from robench.datasets import ArrayDataset
from robench.errors import AttackError
from robench.models import wrap_module
from robench.records import AttackSpec, AuditSpec, EvaluationRecord, Outcome, Suite
from robench.statistics import missed_share_upper


class Threshold(nn.Module):
    """Two classes, decided by the sign of the mean pixel minus one half; optionally masked.

    With ``masked`` the gradient of the logits is zero everywhere, as in a defense that hides it.
    """

    def __init__(self, masked: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.masked = masked

    def forward(self, inputs: Tensor) -> Tensor:
        lead = self.scale * (inputs.mean(dim=(1, 2, 3)) - 0.5)
        if self.masked:
            lead = lead.sign() + 0 * lead
        return torch.stack((-lead, lead), dim=1)


def stripes(margins: list[float]) -> ArrayDataset:
    """Flat images whose mean is the given distance above one half; all of class 1."""
    inputs = torch.stack([torch.full((1, 4, 4), 0.5 + margin) for margin in margins])
    labels = torch.ones(len(margins), dtype=torch.int64)
    return ArrayDataset(inputs, labels, num_classes=2)


def evaluate(model: nn.Module, data: ArrayDataset, spec: AttackSpec, **options: Any) -> Any:
    suite = Suite(name="test", attacks=(spec,))
    return robench.evaluate(
        model, data, suite, threat_model="Linf-0.1", device="cpu", precision="fp32", **options
    )[0]


def pgd(name: str, **params: Any) -> AttackSpec:
    return AttackSpec(name=name, attack="pgd", params=params)


SQUARE = AttackSpec(name="square", attack="square", params={"queries": 60})


def test_only_survivors_go_on() -> None:
    # The mean moves by at most eps, so exactly the first two samples can be broken.
    data = stripes([0.02, 0.09, 0.12, 0.3])
    weak = pgd("weak", steps=1, relative_step_size=0.5, random_start=False)
    strong = pgd("strong", steps=4, random_start=False)
    stored = evaluate(Threshold(), data, AttackSpec(name="both", stages=(weak, strong)))
    record: EvaluationRecord = stored.record
    assert [(s.name, s.attempted, s.broken) for s in record.stages] == [
        ("weak", 4, 1),
        ("strong", 3, 1),
    ]
    assert record.counts == {
        Outcome.CLEAN_ERROR: 0,
        Outcome.BROKEN: 2,
        Outcome.SURVIVED: 2,
        Outcome.ERRORED: 0,
    }
    assert list(stored.table["broken_by"][:2]) == ["weak", "strong"]
    sizes = stored.table["perturbation_size"]
    assert (sizes <= 0.1 + 1e-6).all()


def audited(first: AttackSpec, later: AttackSpec, minimum: int) -> AttackSpec:
    return AttackSpec(
        name="core",
        stages=(first, later),
        audit=AuditSpec(fraction=0.01, minimum=minimum, first_stage=1),
    )


def test_audit_without_a_hit_states_its_bound() -> None:
    data = stripes([0.2 + 0.001 * i for i in range(60)])
    spec = audited(pgd("pgd", steps=2), SQUARE, minimum=20)
    record = evaluate(Threshold(), data, spec).record
    assert record.audit is not None
    assert (record.audit.survivors, record.audit.audited, record.audit.hits) == (60, 20, 0)
    assert not record.audit.escalated
    assert record.audit.missed_share_upper == missed_share_upper(0, 20, population=60)
    assert [s.attempted for s in record.stages] == [60, 20]


def test_a_hit_escalates_to_all_survivors() -> None:
    # The masked model gives PGD nothing to climb, but Square breaks what is within reach.
    data = stripes([0.05] * 60)
    spec = audited(pgd("pgd", steps=2, random_start=False), SQUARE, minimum=20)
    record = evaluate(Threshold(masked=True), data, spec).record
    assert record.audit is not None
    assert record.audit.escalated
    assert record.audit.hits > 0
    assert record.audit.missed_share_upper == 0.0
    assert sum(s.attempted for s in record.stages[1:]) == 60
    assert record.count(Outcome.BROKEN) == 60
    assert {flag.name for flag in record.flags} >= {"square_lowers_accuracy"}


def test_the_audited_samples_do_not_depend_on_order() -> None:
    data = stripes([0.2 + 0.001 * i for i in range(30)])
    spec = audited(pgd("pgd", steps=1), SQUARE, minimum=10)
    forwards = evaluate(Threshold(), data, spec).table.set_index("sample_id")["forwards"]
    backwards_order = list(reversed(range(30)))
    turned = ArrayDataset(
        data.batch(backwards_order),
        data.labels[backwards_order],
        num_classes=2,
        sample_ids=[data.sample_ids[i] for i in backwards_order],
    )
    again = evaluate(Threshold(), turned, spec).table.set_index("sample_id")["forwards"]
    assert forwards.sort_index().equals(again.sort_index())


def test_too_few_classes_skip_a_stage_and_say_so() -> None:
    data = stripes([0.05, 0.3])
    stages = (
        pgd("pgd", steps=3),
        AttackSpec(name="apgd-dlr", attack="apgd", params={"loss": "dlr"}),
    )
    record = evaluate(Threshold(), data, AttackSpec(name="both", stages=stages)).record
    assert record.stages[1].skipped is not None
    assert "3 classes" in record.stages[1].skipped
    assert "stage_skipped" in {flag.name for flag in record.flags}
    assert record.count(Outcome.BROKEN) == 1


def test_an_attack_that_is_not_defined_at_all_is_refused() -> None:
    spec = AttackSpec(name="dlr", attack="apgd", params={"loss": "dlr"})
    with pytest.raises(AttackError, match="needs 3 classes"):
        evaluate(Threshold(), stripes([0.05]), spec)


class TwoHeads(nn.Module):
    """Final logits without a usable gradient, and an honest auxiliary head."""

    def __init__(self) -> None:
        super().__init__()
        self.final, self.auxiliary = Threshold(masked=True), Threshold()

    def forward(self, inputs: Tensor) -> dict[str, Any]:
        return {"final": self.final(inputs), "auxiliary": [self.auxiliary(inputs)]}


def two_heads(**forward: Any) -> nn.Module:
    return wrap_module(
        TwoHeads(),
        num_classes=2,
        input={"channels": 1},
        forward={"output": ["final"], **forward},
        threat_model="Linf-0.1",
    )


AUXILIARY = AttackSpec(
    name="auxiliary", attack="pgd", output="*", params={"steps": 5, "random_start": False}
)


def test_an_attack_on_another_output_is_scored_on_the_final_one() -> None:
    data = stripes([0.02, 0.09, 0.3])
    model = two_heads(outputs={"auxiliary_0": ["auxiliary", 0]})
    blind = evaluate(model, data, pgd("pgd", steps=3, random_start=False)).record
    assert blind.count(Outcome.BROKEN) == 0
    stored = evaluate(model, data, AUXILIARY)
    assert stored.record.count(Outcome.BROKEN) == 2
    assert list(stored.table["broken_by"][:2]) == ["auxiliary_0", "auxiliary_0"]
    assert list(stored.table["adv_prediction"][:2]) == [0, 0]


def test_models_without_such_an_output_do_not_run_the_entry() -> None:
    suite = Suite(name="test", attacks=(pgd("pgd", steps=1), AUXILIARY))
    assert [spec.name for spec in suite.for_model("Linf", ())] == ["pgd"]
    assert [spec.name for spec in suite.for_model("Linf", ("auxiliary_0",))] == ["pgd", "auxiliary"]
    assert AUXILIARY.is_optional
    (stage,) = AUXILIARY.for_outputs(["other", "auxiliary_0"][1:])
    assert (stage.name, stage.output) == ("auxiliary_0", "auxiliary_0")


@pytest.mark.parametrize("suite", ["standard", "core"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_no_suite_calls_the_audited_protocol_autoattack(suite: str, norm: Any) -> None:
    for spec in load_suite(suite).for_norm(norm):
        assert spec.audit is None or spec.name == "aa-core"


class Picky(nn.Module):
    """Raises for bright images and returns NaN for dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Threshold()

    def forward(self, inputs: Tensor) -> Tensor:
        means = inputs.mean(dim=(1, 2, 3))
        if bool((means > 0.95).any()):
            raise RuntimeError("too bright")
        logits = self.inner(inputs)
        return torch.where((means < 0.05)[:, None], torch.nan, logits)


def test_samples_that_fail_are_errored_and_the_others_are_attacked() -> None:
    data = ArrayDataset(
        torch.stack([torch.full((1, 4, 4), v) for v in (0.98, 0.01, 0.55, 0.8)]),
        torch.tensor([1, 0, 1, 1]),
        num_classes=2,
    )
    stored = evaluate(Picky(), data, pgd("pgd", steps=3, random_start=False))
    outcomes = list(stored.table["outcome"])
    assert outcomes == ["errored", "errored", "broken", "survived"]
    assert "too bright" in stored.table["message"][0]
    assert "non-finite" in stored.table["message"][1]
