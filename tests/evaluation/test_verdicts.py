"""What a record says of each sample comes from one verdict, and from nothing where there is none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from attack_models import linear_problem, run_search
from torch import Tensor, nn

import robench
from robench.attacks.carlini_wagner import CarliniWagnerL2
from robench.attacks.fab import FAB
from robench.datasets import ArrayDataset
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.batch_attacks import run_batch_attack
from robench.evaluation.samples import Samples
from robench.geometry import norm_of
from robench.inspection.verification import reverify
from robench.models import wrap_module
from robench.records import AttackSpec, Outcome, Suite
from robench.results import Store
from robench.threat_models import ThreatModel

pytestmark = pytest.mark.usefixtures("unexamined")


class Brightness(nn.Module):
    """Two classes by the mean pixel, through a layer that has a map."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 1, 1, bias=False)
        self.fc = nn.Linear(1, 2)
        with torch.no_grad():
            self.look.weight.fill_(1.0)
            self.fc.weight.copy_(torch.tensor([[10.0], [-10.0]]))
            self.fc.bias.copy_(torch.tensor([-5.0, 5.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.look(inputs).mean(dim=(2, 3)))
        return logits


def bright(*above: float) -> ArrayDataset:
    """Flat images of class 0, their mean so much above one half."""
    inputs = torch.stack([torch.full((1, 6, 6), 0.5 + value) for value in above])
    return ArrayDataset(inputs, torch.zeros(len(above), dtype=torch.int64), num_classes=2)


def evaluate(module: nn.Module, data: ArrayDataset, attack: str, **options: Any) -> Any:
    """One attack under Linf 0.1; parameters of the attack as ``params``."""
    spec = AttackSpec(name=attack, attack=attack, params=options.pop("params", {}))
    model = wrap_module(module, num_classes=2, input={"channels": 1}, threat_model="Linf-0.1")
    suite = Suite(name="one", attacks=(spec,))
    return robench.evaluate(model, data, suite, device="cpu", precision="fp32", **options)[0]


def test_survivors_of_carlini_wagner_show_the_nearest_point_in_the_ball() -> None:
    """For two linear classes it is x − ε·w/‖w‖, with the margin lead·(1 − ε / distance)."""
    model, inputs, labels, distance, threat_model = linear_problem("L2", 2, count=24)
    attack = CarliniWagnerL2(threat_model, rounds=7, steps=60, learning_rate=0.008)
    found = run_search(attack, model, inputs, labels).found
    survived = ~found.broken
    assert 4 < int(survived.sum()) < 20
    normal = (model.weight[1] - model.weight[0]).float() * (1 - 2 * labels[:, None])
    nearest = inputs.flatten(1) + threat_model.radius * normal / norm_of(normal, "L2")[:, None]
    away = norm_of(found.adv_inputs.flatten(1) - nearest, "L2")[survived]
    assert float(away.max()) < 0.2 * threat_model.radius
    logits = model(inputs)
    lead = logits.amax(dim=1) - logits.amin(dim=1)
    least = (lead * (1 - threat_model.radius / distance))[survived].double()
    seen = found.margin[survived].double()
    assert bool((seen >= least - 1e-4).all())
    torch.testing.assert_close(seen, least, rtol=0.05, atol=0.02 * float(lead.mean()))
    expected = torch.full_like(seen, threat_model.radius).float()
    torch.testing.assert_close(found.size[survived], expected, rtol=1e-4, atol=0)
    assert torch.equal(found.prediction[survived], labels[survived])


def test_a_search_that_stays_outside_the_ball_has_nothing_to_show() -> None:
    """FAB steps over the boundary, which for every survivor lies outside the ball."""
    model, inputs, labels, distance, threat_model = linear_problem("L2", 2)
    found = run_search(FAB(threat_model, steps=10), model, inputs, labels).found
    survived = distance > threat_model.radius
    assert torch.equal(found.broken, ~survived)
    assert found.prediction[survived].tolist() == [-1] * int(survived.sum())
    assert bool(found.margin[survived].isnan().all())
    assert bool(found.size[survived].isnan().all())
    assert torch.equal(found.adv_inputs[survived], inputs[survived])
    assert bool((found.size[~survived] > 0).all())
    assert torch.equal(found.prediction[~survived], 1 - labels[~survived])


class Proposing:
    """A foreign attack that proposes whatever it was given."""

    name = "proposing"

    def __init__(self, threat_model: ThreatModel, proposals: Tensor) -> None:
        self.threat_model = threat_model
        self.proposals = proposals

    def propose(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        return self.proposals


def test_what_a_foreign_attack_proposes_is_shown_only_where_it_says_something() -> None:
    model = Brightness().requires_grad_(False)
    data, threat = bright(0.05, 0.2, 0.2, 0.2, 0.2), ThreatModel.of("Linf", "0.1")
    inputs = data.batch(range(5))
    moves = torch.tensor([-0.08, -0.08, 0.0, -0.3, math.nan]).view(5, 1, 1, 1)
    judge = Adjudicator(model, threat)
    samples = Samples(inputs, data.labels, model(inputs), torch.zeros(5, dtype=torch.int64))
    found = run_batch_attack(Proposing(threat, inputs + moves), judge, samples, 0)
    # Broken; a survivor's point; the clean input itself; outside the ball; no number at all.
    assert found.broken.tolist() == [True, False, False, False, False]
    assert found.prediction.tolist() == [1, 0, -1, -1, -1]
    assert found.size.isnan().tolist() == [False, False, True, True, True]
    torch.testing.assert_close(found.margin[:2], torch.tensor([-0.6, 2.4]), rtol=0, atol=1e-4)
    assert torch.equal(found.adv_inputs[2:], inputs[2:])
    assert found.errors == {}


class OneGradient:
    """A foreign attack that follows the sign of a single gradient of the whole batch."""

    def __init__(self, threat_model: ThreatModel, *, name: str = "one-gradient") -> None:
        self.name, self.threat_model = name, threat_model

    def propose(self, model: nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        with torch.enable_grad():
            points = inputs.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(points), labels)
        (gradient,) = torch.autograd.grad(loss, points)
        proposed = (inputs + self.threat_model.radius * gradient.sign()).clamp(0, 1)
        model(proposed)
        return proposed


def test_passes_of_a_foreign_attack_are_counted_for_all_and_for_no_sample() -> None:
    data = bright(0.05, 0.2, 0.3, -0.2)
    foreign = AttackSpec(name="foreign", attack=f"{__name__}:OneGradient")
    pgd = AttackSpec(name="pgd", attack="pgd", params={"steps": 4, "random_start": False})
    suite = Suite(
        name="two",
        attacks=(foreign, AttackSpec(name="both", stages=(pgd, foreign))),
    )
    model = wrap_module(Brightness(), num_classes=2, input={"channels": 1}, threat_model="Linf-0.1")
    alone, after = robench.evaluate(model, data, suite, device="cpu", precision="fp32")
    assert (alone.record.cost.forwards, alone.record.cost.backwards) == (6, 3)
    # Misclassified samples are not attacked; the three others share their passes.
    assert [row.forwards for row in alone.samples] == [None, None, None, 0]
    assert alone.table["backwards"].isna().tolist() == [True, True, True, False]
    # PGD breaks the first sample, whose passes are its own.
    assert [row.forwards is None for row in after.samples] == [False, True, True, False]
    first, second = after.record.stages
    assert (second.forwards, second.backwards) == (4, 2)
    assert after.record.cost.forwards == first.forwards + second.forwards


class Undefined(Brightness):
    """Not finite below a mean of 0.6."""

    def forward(self, inputs: Tensor) -> Tensor:
        dark = inputs.mean(dim=(1, 2, 3)) < 0.6
        return torch.where(dark[:, None], torch.nan, super().forward(inputs))


def test_a_foreign_proposal_without_finite_logits_is_an_error_and_no_survivor() -> None:
    model = Undefined().requires_grad_(False)
    data, threat = bright(0.15, 0.3), ThreatModel.of("Linf", "0.1")
    inputs = data.batch(range(2))
    samples = Samples(inputs, data.labels, model(inputs), torch.zeros(2, dtype=torch.int64))
    attack = Proposing(threat, inputs - 0.08)
    found = run_batch_attack(attack, Adjudicator(model, threat), samples, 0)
    assert list(found.errors) == [0]
    assert "not finite" in found.errors[0]
    assert found.prediction.tolist() == [-1, 0]
    assert not bool(found.broken.any())


def test_undefined_is_empty_everywhere_and_never_zero(tmp_path: Any) -> None:
    data = bright(0.05, 0.2, 0.3)
    stored = evaluate(
        Brightness(), data, "fab", params={"steps": 5}, results=tmp_path, save_adversarial=True
    )
    table = stored.table
    assert list(table["outcome"]) == ["broken", "survived", "survived"]
    for column in ("adv_prediction", "adv_margin", "perturbation_size"):
        assert table[column].isna().tolist() == [False, True, True]
    for name in ("attention_deviation", "attention_scatter_adv", "attention_empty", "alignment"):
        assert table[name].isna().tolist() == [False, True, True]
        summary = stored.record.metrics[name]
        assert (summary.mean_survived, summary.n) == (None, 1)
        assert summary.mean == summary.mean_broken is not None
    # What is said of the clean input does not depend on the attack.
    assert table["attention_scatter_clean"].tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    store = Store(tmp_path)
    adversarial = store.adversarial_rows(stored.record.key)[:]
    clean = data.batch(range(3)).numpy()
    assert (adversarial[1:] == clean[1:]).all()
    assert (adversarial[0] != clean[0]).any()
    panel = store.read_arrays(stored.record.key)["panel_sample_ids"]
    assert panel.tolist() == [data.sample_ids[0]]
    model = wrap_module(Brightness(), num_classes=2, input={"channels": 1}, threat_model="Linf-0.1")
    again = reverify(stored, adversarial, model, data, device=torch.device("cpu"))
    assert again == (1, {})


class BatchDependent(Brightness):
    """Kernels that depend on the batch, as a real device's do: many inputs, a larger lead."""

    def forward(self, inputs: Tensor) -> Tensor:
        lead = 2e-3 * len(inputs)
        return super().forward(inputs) + torch.tensor([lead / 2, -lead / 2])


@pytest.mark.parametrize("attack", ["pgd", "apgd", "fab", "square"])
@pytest.mark.parametrize("batch_size", [1, pytest.param(5, marks=pytest.mark.slow), 64])
def test_outcome_and_prediction_never_contradict_each_other(attack: str, batch_size: int) -> None:
    """At the best point of the ball the lead is 20·(above − 0.1) + 0.002·batch: either sign."""
    data = bright(*(0.0935 + 0.0004 * i for i in range(15)))
    budget = {"square": {"queries": 12}}.get(attack, {"steps": 4})
    stored = evaluate(BatchDependent(), data, attack, params=budget, batch_size=batch_size)
    rows = [row for row in stored.samples if row.adv_prediction is not None]
    assert stored.record.count(Outcome.ERRORED) == 0
    for row in rows:
        wrong = row.adv_prediction != row.label
        assert wrong == (row.outcome is Outcome.BROKEN)
        assert row.adv_margin is not None
        assert (row.adv_margin < 0) == wrong
