"""What a plan foretells is what the run then takes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from attack_models import ExactNetwork, images, predictions
from torch import Tensor, nn

from robench.cli.plan import duration
from robench.datasets import ArrayDataset
from robench.evaluation.plan import ModelPlan
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import evaluate_model, plan_model
from robench.models import wrap_module
from robench.records import AttackSpec, Suite
from robench.results import Store
from robench.threat_models import ThreatModel

N = 20
NOTHING = ThreatModel.of("Linf", "0.000001")
SETTINGS = Settings(precision="fp32", batch_size=64, workers=1)
PGD = AttackSpec(name="pgd", attack="pgd", params={"steps": 5, "restarts": 2})
APGD = AttackSpec(
    name="apgd-t", attack="apgd", params={"loss": "dlr-targeted", "steps": 6, "targets": 3}
)
SUITE = Suite(name="two", attacks=(PGD, AttackSpec(name="both", stages=(PGD, APGD))))


class Sleeping(nn.Module):
    """Takes a millisecond for each input."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ExactNetwork()

    def forward(self, inputs: Tensor) -> Tensor:
        time.sleep(0.001 * len(inputs))
        out: Tensor = self.network(inputs)
        return out


def problem(network: nn.Module) -> tuple[object, ArrayDataset]:
    inputs = images(N, seed=1)
    data = ArrayDataset(inputs, predictions(ExactNetwork(), inputs), num_classes=6)
    model = wrap_module(network, num_classes=6, input={"channels": 1}, threat_model=NOTHING)
    return model.eval(), data


def plan(model: object, data: ArrayDataset, folder: Path, suite: Suite = SUITE) -> ModelPlan:
    store = Store(folder / "results")
    return plan_model(model, data, suite, store=store, threat_model=NOTHING, settings=SETTINGS)


@pytest.fixture
def short_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.evaluation.plan._SECONDS", 0.05)
    monkeypatch.setattr(
        "robench.evaluation.plan.load_suite",
        lambda _: Suite(name="aa", attacks=(AttackSpec(name="aa", stages=(PGD, APGD)),)),
    )


def test_passes_and_time_are_those_of_the_run(tmp_path, short_timing):
    """No sample falls, so every search is made to its end."""
    model, data = problem(Sleeping())
    told = plan(model, data, tmp_path)
    assert not (tmp_path / "results").exists()
    store = Store(tmp_path / "results")
    records = evaluate_model(
        model, data, SUITE, store=store, threat_model=NOTHING, settings=SETTINGS
    )
    assert (told.n, told.attacked, told.stored) == (N, N, ())
    for job, stored in zip(told.jobs, records, strict=True):
        cost = stored.record.cost
        assert job.attack == stored.record.attack.name
        assert job.passes == pytest.approx(cost.forwards + cost.backwards, rel=0.1)
        assert job.seconds == pytest.approx(cost.seconds, rel=0.4)
    pgd, apgd = (stage.samples for stage in told.jobs[1].stages)
    assert (pgd, apgd) == (N, N)
    assert told.reference_seconds == pytest.approx(
        sum(stage.seconds for stage in told.jobs[1].stages), rel=0.4
    )


def test_what_square_remembers_is_reckoned_with(tmp_path, short_timing, monkeypatch):
    """Nearly all of its queries are ones that it has made before."""
    # However slow this machine is now: each stretch is timed to its end.
    monkeypatch.setattr("robench.evaluation.plan._STRETCHES_SECONDS", float("inf"))
    square = AttackSpec(name="square", attack="square", params={"queries": 2000})
    suite = Suite(name="one", attacks=(square,))
    model, data = problem(ExactNetwork())
    (job,) = plan(model, data, tmp_path, suite).jobs
    store = Store(tmp_path / "results")
    (stored,) = evaluate_model(
        model, data, suite, store=store, threat_model=NOTHING, settings=SETTINGS
    )
    assert stored.record.cost.forwards < N * 2000 / 3
    assert job.passes == pytest.approx(stored.record.cost.forwards, rel=0.4)


def test_what_is_stored_costs_nothing(tmp_path, short_timing):
    model, data = problem(ExactNetwork())
    store = Store(tmp_path / "results")
    one = Suite(name="one", attacks=(PGD,))
    evaluate_model(model, data, one, store=store, threat_model=NOTHING, settings=SETTINGS)
    told = plan(model, data, tmp_path)
    assert told.stored == ("pgd",)
    assert [job.attack for job in told.jobs] == ["both"]
    assert plan(model, data, tmp_path, one).seconds() == 0.0


def test_shards_share_all_but_the_preparation(tmp_path, short_timing):
    told = plan(*problem(ExactNetwork()), tmp_path)
    shared = told.seconds() - told.preparing_seconds
    assert told.seconds(4) == pytest.approx(told.preparing_seconds + shared / 4)


def test_a_model_whose_gradients_raise_has_a_plan(tmp_path, short_timing):
    class Refusing(ExactNetwork):
        def forward(self, inputs: Tensor) -> Tensor:
            if torch.is_grad_enabled() and inputs.requires_grad:
                raise RuntimeError("no gradients here")
            return super().forward(inputs)

    told = plan(*problem(Refusing()), tmp_path)
    assert [job.attack for job in told.jobs] == ["pgd", "both"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (90, "1.5 min"), (5400, "1.5 h"), (216000, "2.5 days")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
    assert duration(float("nan")) == "unknown"
