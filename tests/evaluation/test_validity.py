"""Flags, each raised by a planted fault and by no sound model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robench.datasets import load_dataset
from robench.evaluation.validity import (
    flag_few_classes,
    flag_gradients,
    flag_square,
    flags_of_model,
)
from robench.models import list_cards, load_model
from robench.records import AttackSpec


class Faulty(nn.Module):
    """A linear classifier whose logits go through a fault."""

    def __init__(self, fault: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 5)
        self.fault = fault

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fault(self.linear(inputs.flatten(1)), inputs)


def optimises(logits: Tensor, inputs: Tensor) -> Tensor:
    with torch.enable_grad():
        shift = torch.zeros_like(logits, requires_grad=True)
        torch.autograd.grad((logits + shift).square().sum(), shift)
    return logits


FAULTS = {
    "randomised": lambda z, x: z + 0.1 * torch.randn_like(z),
    "softmax_outputs": lambda z, x: z.softmax(dim=1),
    "dynamic": optimises,
    "batch_dependent": lambda z, x: z - z.mean(dim=0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_raises_its_flag(name: str) -> None:
    torch.manual_seed(0)
    inputs = torch.rand(32, 1, 4, 4)
    labels = torch.zeros(32, dtype=torch.int64)
    flags = {flag.name: flag for flag in flags_of_model(Faulty(FAULTS[name]), inputs, labels)}
    assert name in flags
    assert flags[name].evidence


def test_a_sound_model_raises_none() -> None:
    torch.manual_seed(0)
    inputs = torch.rand(32, 1, 4, 4)
    sound = Faulty(lambda z, x: z)
    assert flags_of_model(sound, inputs, torch.zeros(32, dtype=torch.int64)) == []


@pytest.mark.parametrize("located", list_cards("digits"), ids=lambda located: located.card.name)
def test_the_digits_zoo_raises_none(located) -> None:
    data = load_dataset("digits").subset(32)
    model = load_model(located)
    assert flags_of_model(model, data.batch(range(32)), data.labels) == []


def test_square_and_gradients() -> None:
    assert flag_square(1, 500) is None  # 0.2 points
    flag = flag_square(2, 500)
    assert flag is not None
    assert flag.count == 2
    assert flag_gradients(0, 0, 10) == []
    assert [f.name for f in flag_gradients(3, 1, 10)] == ["zero_gradients", "nonfinite_gradients"]


def test_more_targets_than_wrong_classes() -> None:
    spec = AttackSpec(name="fab-t", attack="fab", params={"targets": 9})
    assert flag_few_classes(spec, 10) is None
    flag = flag_few_classes(spec, 3)
    assert flag is not None
    assert "2 target classes" in flag.evidence
