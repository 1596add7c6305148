"""The student: what it learns of models that show outputs and no gradients, and from what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attack_models import linear_problem
from torch import Tensor, nn

import robench
from robench.datasets import ArrayDataset
from robench.errors import AttackError
from robench.models import wrap_module
from robench.records import AttackSpec, Suite
from robench.stand_ins import distilled
from robench.stand_ins.base import Setting
from robench.stand_ins.distilled import Distilled, Student

pytestmark = pytest.mark.usefixtures("unexamined")

OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "probabilities": lambda logits: logits.softmax(dim=1),
    "saturated": lambda logits: 1e4 * logits + 1e3,
    "one-hot": lambda logits: nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float(),
}


class Shown(nn.Module):
    """Of a network, what outputs let through, and no gradient."""

    def __init__(self, network: nn.Module, outputs: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.outputs = outputs

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs(self.network(inputs).detach().float())


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_STEPS": 40, "_MOST": 8, "_RATE": 3e-2, "_WIDTH": 4}.items():
        monkeypatch.setattr(distilled, name, value)


def setting(outputs: Callable[[Tensor], Tensor], classes: int = 3) -> Setting:
    network, inputs, labels, _, threat = linear_problem("Linf", classes, count=20)
    model = wrap_module(Shown(network, outputs), num_classes=classes, threat_model=threat)
    return Setting(model, inputs, labels, threat, seed=0, batch_size=16)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    "outputs",
    [
        "logits",
        # Learnt as logits are, once they are scaled.
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("probabilities", "saturated")),
        "one-hot",
    ],
)
def test_a_student_breaks_what_the_closed_form_says_can_be_broken(outputs: str) -> None:
    network, inputs, labels, distance, threat = linear_problem("Linf", 3, count=50)
    stored = robench.evaluate(
        Shown(network, OUTPUTS[outputs]),
        ArrayDataset(inputs, labels, num_classes=3),
        Suite(
            name="t",
            attacks=(
                AttackSpec(
                    name="distilled",
                    attack="pgd",
                    through="distilled",
                    params={"steps": 10, "loss": "margin"},
                ),
            ),
        ),
        threat_model=str(threat),
        device="cpu",
        workers=1,
    )[0]
    broken = [outcome == "broken" for outcome in stored.table["outcome"]]
    possible = (distance < threat.radius).tolist()
    assert not any(b and not p for b, p in zip(broken, possible, strict=True))
    missed = sum(possible) - sum(broken)
    assert missed <= (3 if outputs == "one-hot" else 1)
    (stage,) = stored.record.stages
    assert str(stage.search).startswith("student of 450 outputs")


@pytest.mark.usefixtures("short")
def test_only_samples_and_seed_decide_what_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilled, "_STEPS", 4)
    here = setting(OUTPUTS["logits"])
    seen = Distilled().build(here).logits(here.inputs)
    torch.manual_seed(7)  # no draw is from torch's own generator
    again = Distilled().build(replace(here, batch_size=7)).logits(here.inputs)
    assert torch.equal(seen, again)
    other = Distilled().build(replace(here, seed=1)).logits(here.inputs)
    assert not torch.equal(seen, other)


@pytest.mark.usefixtures("short")
def test_points_at_which_the_model_fails_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilled, "_STEPS", 4)

    def sometimes(logits: Tensor) -> Tensor:
        return torch.where(logits[:, :1] > logits[:, 1:2] + 0.3, torch.nan, logits)

    here = setting(sometimes)
    assert Distilled().build(here).logits(here.inputs).isfinite().all()

    def never(logits: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(AttackError, match=r"no finite outputs at 180 of 180|no finite outputs"):
        Distilled().build(setting(never))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 7, 40), (1, 1, 1), (3, 224, 224)])
def test_a_student_fits_images_of_any_shape(shape: tuple[int, int, int]) -> None:
    student = Student(torch.Size(shape), 5, torch.tensor([1]))
    assert student(torch.rand(2, *shape)).shape == (2, 5)
    assert sum(values.numel() for values in student.curved.parameters()) < 20_000
