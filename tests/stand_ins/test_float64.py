"""Logits that float32 cannot hold, in float64: against what they are by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attack_models import images
from torch import Tensor, nn

from robench.errors import AttackError
from robench.models import wrap_module
from robench.stand_ins.base import Setting
from robench.stand_ins.float64 import Float64
from robench.threat_models import ThreatModel


class After(nn.Module):
    """A network, and what is made of its logits."""

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(self.network(inputs))


def given(function: Callable[[Tensor], Tensor]) -> tuple[Setting, nn.Module]:
    inputs, threat = images(20), ThreatModel.of("Linf", "0.1")
    linear = nn.Linear(36, 3)
    with torch.no_grad():
        linear.weight.copy_(images(3).flatten(1) - 0.5)
        linear.bias.zero_()
    model = nn.Sequential(nn.Flatten(), linear)
    network = After(model, function)
    with torch.no_grad():
        labels = network(inputs).argmax(dim=1)
    wrapped = wrap_module(network, num_classes=3, threat_model=threat)
    return Setting(wrapped, inputs, labels, threat, 0, 8), model


def test_an_offset_hides_nothing() -> None:
    setting, network = given(lambda logits: logits + 1e5)
    built = Float64().build(setting)
    with torch.no_grad():
        exact = network(setting.inputs)
    exact = exact - exact.amax(dim=1, keepdim=True)
    assert float((built.logits(setting.inputs) - exact).abs().max()) < 1e-5
    coarse = setting.model(setting.inputs)
    coarse = coarse - coarse.amax(dim=1, keepdim=True)
    assert float((coarse - exact).abs().max()) > 1e-3
    # The nearest points of a search are judged however its margins are rounded.
    assert 1e-3 < built.tolerance < 0.1


def test_what_cannot_be_cast_says_so() -> None:
    setting, _ = given(lambda logits: logits @ torch.eye(3))
    with pytest.raises(AttackError, match="cannot be run in float64: RuntimeError"):
        Float64().build(setting)
