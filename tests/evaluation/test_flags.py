"""Flags that the attacks themselves raise, from the model to the record."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset
from robench.records import AttackSpec, EvaluationRecord, Flag, Suite

CLASSES = 4


class HalfMasked(nn.Module):
    """The mean pixel decides: class 0 below one half, class 1 above, the others never.

    Where the first pixel says so the logits are a step, without a slope but as easy to break.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        lead = 10 * (inputs[:, :, :, 1:].mean(dim=(1, 2, 3)) - 0.5)
        masked = inputs[:, 0, 0, 0] > 0.5
        lead = torch.where(masked, lead.detach().sign(), lead)
        return torch.stack((-lead, lead, -2 - lead.abs(), -3 - lead.abs()), dim=1)


def samples(masked: int, plain: int, wrong: int, lead: float) -> ArrayDataset:
    """Images that lie ``lead`` above one half; the last ones carry the wrong label."""
    n = masked + plain + wrong
    inputs = torch.full((n, 1, 4, 5), 0.5 + lead)
    inputs[:, 0, :, 0] = 0.2
    inputs[:masked, 0, :, 0] = 0.8
    labels = torch.ones(n, dtype=torch.int64)
    labels[n - wrong :] = 2
    return ArrayDataset(inputs, labels, num_classes=CLASSES)


def record(
    data: ArrayDataset, spec: AttackSpec, model: type[nn.Module] = HalfMasked
) -> EvaluationRecord:
    suite = Suite(name="test", attacks=(spec,))
    return robench.evaluate(
        model(),
        data,
        suite,
        threat_model="Linf-0.1",
        device="cpu",
        precision="fp32",
        num_classes=CLASSES,
    )[0].record


def flag(of: EvaluationRecord, name: str) -> Flag | None:
    found = [flag for flag in of.flags if flag.name == name]
    assert len(found) <= 1
    return found[0] if found else None


def attack(name: str, kind: str, **params: Any) -> AttackSpec:
    return AttackSpec(name=name, attack=kind, params=params)


APGD_DLR = attack("apgd-dlr", "apgd", loss="dlr", steps=3, restarts=2)
FAB_T = attack("fab-t", "fab", steps=2, targets=3)
SQUARE = attack("square", "square", queries=60)


class Fails(HalfMasked):
    """Raises for gradients where the plain network is masked, and always where all pixels are 1."""

    def forward(self, inputs: Tensor) -> Tensor:
        if bool((inputs == 1).flatten(1).all(dim=1).any()):
            raise ValueError("white")
        if inputs.requires_grad and bool((inputs[:, 0, 0, 0] > 0.5).any()):
            raise RuntimeError("not under attack")
        return super().forward(inputs)


def test_samples_that_fail_under_attack_are_counted() -> None:
    data = samples(masked=2, plain=5, wrong=1, lead=0.3)
    inputs = data.batch(range(8))
    inputs[6] = 1
    data = ArrayDataset(inputs, data.labels, num_classes=CLASSES)
    seen = flag(record(data, attack("pgd", "pgd", steps=2), Fails), "errored_samples")
    assert seen is not None
    assert (seen.count, seen.severity) == (2, "severe")
    assert "failed under attack on 2 of 8 samples" in seen.evidence
    assert seen.evidence.endswith("on the first: RuntimeError: not under attack")
    assert flag(record(data, attack("pgd", "pgd", steps=2)), "errored_samples") is None


def test_zero_gradients_are_counted_by_search_and_stage() -> None:
    data = samples(masked=4, plain=11, wrong=5, lead=0.3)
    seen = flag(record(data, AttackSpec(name="both", stages=(APGD_DLR, FAB_T))), "zero_gradients")
    assert seen is not None
    # Two restarts, three targets, of the fifteen samples that are classified correctly.
    assert seen.evidence == (
        "8 of 30 searches of apgd-dlr, 12 of 45 searches of fab-t started with a zero gradient"
    )
    assert (seen.count, seen.severity) == (20, "warning")


def test_averaging_over_draws_counts_no_search_twice() -> None:
    data = samples(masked=4, plain=11, wrong=5, lead=0.3)
    averaged = APGD_DLR.model_copy(update={"params": {**APGD_DLR.params, "eot": 7}})
    seen = flag(record(data, averaged), "zero_gradients")
    assert seen is not None
    assert seen.evidence == "8 of 30 searches of apgd-dlr started with a zero gradient"


def test_where_gradients_lead_somewhere_no_flag_is_raised() -> None:
    data = samples(masked=0, plain=12, wrong=0, lead=0.3)
    done = record(data, AttackSpec(name="both", stages=(APGD_DLR, FAB_T, SQUARE)))
    names = {flag.name for flag in done.flags}
    assert not names & {"zero_gradients", "nonfinite_gradients", "square_lowers_accuracy"}


@pytest.mark.parametrize(("wrong", "points"), [(0, 10.0), (20, 5.0)])
def test_square_s_gain_is_a_share_of_all_samples(wrong: int, points: float) -> None:
    """What gradients could break is broken before; two masked samples are left to Square."""
    data = samples(masked=2, plain=18, wrong=wrong, lead=0.05)
    stages = (attack("pgd", "pgd", steps=5), SQUARE)
    seen = flag(record(data, AttackSpec(name="both", stages=stages)), "square_lowers_accuracy")
    assert seen is not None
    assert seen.count == 2
    assert f"2 of {20 + wrong} samples" in seen.evidence
    assert f"{points:.1f} points" in seen.evidence


@pytest.mark.parametrize(("n", "raised"), [(500, False), (499, True)])
def test_square_s_gain_must_be_more_than_a_fifth_of_a_point(n: int, raised: bool) -> None:
    data = samples(masked=1, plain=0, wrong=n - 1, lead=0.05)
    stages = (attack("pgd", "pgd", steps=2), SQUARE)
    seen = flag(record(data, AttackSpec(name="both", stages=stages)), "square_lowers_accuracy")
    assert (seen is not None) == raised


@pytest.mark.parametrize(("gained", "severity"), [(2, "note"), (4, "warning")])
def test_few_samples_that_square_gains_are_a_note(gained: int, severity: str) -> None:
    """Clopper and Pearson: 2 of 500 may be 0.05 points, 4 of 500 are at least 0.22."""
    data = samples(masked=gained, plain=0, wrong=500 - gained, lead=0.05)
    stages = (attack("pgd", "pgd", steps=2), SQUARE)
    seen = flag(record(data, AttackSpec(name="both", stages=stages)), "square_lowers_accuracy")
    assert seen is not None
    assert seen.severity == severity
    assert {2: "0.05 to 1.44", 4: "0.22 to 2.04"}[gained] in seen.evidence


def test_square_alone_lowers_nothing() -> None:
    data = samples(masked=2, plain=2, wrong=0, lead=0.05)
    assert flag(record(data, SQUARE), "square_lowers_accuracy") is None


def test_more_targets_than_wrong_classes() -> None:
    data = samples(masked=0, plain=3, wrong=0, lead=0.3)
    few = flag(record(data, attack("fab-t", "fab", steps=1, targets=9)), "few_classes")
    assert few is not None
    assert "3 target classes for fab-t (9 wanted)" in few.evidence
    assert flag(record(data, FAB_T), "few_classes") is None
