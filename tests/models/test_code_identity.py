"""The fingerprint of a module without a card: whatever decides what it computes is in it."""

from __future__ import annotations

import copy
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robench.models import wrap_module
from robench.models.architectures.build import architecture_code
from robench.records import ArchitectureSpec


class Scaled(nn.Module):
    """A linear network with an attribute to play with; always the same weights."""

    kept: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs.flatten(1))
        return logits


def _fingerprint(module: nn.Module) -> str:
    return wrap_module(module, num_classes=3, share=True).summary.fingerprint


class Setting:
    """An object of the user's own, kept in a module's attribute."""

    def __init__(self, power: float) -> None:
        self.power = power


def _scaling(factor: float) -> Any:
    return lambda logits: factor * logits


def _hooked(factor: float) -> nn.Module:
    module = Scaled()
    module.register_forward_hook(lambda _module, _inputs, out: factor * out)
    return module


@pytest.mark.parametrize(
    "attribute",
    [
        [1.0, 2.0],
        {"a": 1, "b": (2, 3)},
        {1, 2, 3},
        None,
        torch.arange(3.0),
        np.arange(3.0),
        Setting(2.0),
        [nn.Linear(2, 2)],
        torch.relu,
        nn.functional.relu,
        functools.partial(_scaling, 2.0),
        _scaling(2.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_attribute_of_a_wrapped_module_is_in_its_fingerprint(attribute: Any) -> None:
    module = Scaled()
    without = _fingerprint(module)
    module.kept = attribute  # in the module, no longer in its class
    assert _fingerprint(module) == _fingerprint(copy.deepcopy(module)) != without


def test_what_attributes_refer_to_is_looked_into() -> None:
    module, found = Scaled(), list[str]()
    other_weights = nn.Linear(2, 2)
    for attribute in (
        [1.0, 2.0],
        [1.0, 3.0],
        {"a": [1.0, {"b": 2}]},
        {"a": [1.0, {"b": 3}]},
        torch.zeros(2),
        torch.zeros(2, 1),
        Setting(1.0),
        Setting(2.0),
        _scaling(1.0),
        _scaling(2.0),
        functools.partial(_scaling, 1.0),
        functools.partial(_scaling, 2.0),
        [nn.Linear(2, 2)],
        [other_weights],
    ):
        module.kept = attribute
        found.append(_fingerprint(module))
    assert len(set(found)) == len(found)
    assert len({_fingerprint(module) for module in (_hooked(1.0), _hooked(2.0), Scaled())}) == 3


def test_what_cannot_be_looked_into_makes_a_fingerprint_that_is_never_the_same() -> None:
    module = Scaled()
    module.kept = torch.Generator()
    assert _fingerprint(module) != _fingerprint(module)


def test_an_architecture_of_the_users_own_has_its_code_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "code" / "own_network.py"
    source.parent.mkdir()
    monkeypatch.syspath_prepend(source.parent)
    spec = ArchitectureSpec(name="own_network:build")
    found = []
    for factor in (1, 2):
        source.write_text(
            f"from torch import nn\n\ndef build():\n    return nn.Linear({factor}, 2)\n"
        )
        sys.modules.pop("own_network", None)
        found.append(architecture_code(spec))
    assert None not in found
    assert found[0] != found[1]
    sys.modules.pop("own_network")
    assert architecture_code(ArchitectureSpec(name="resnet18")) is None
    assert architecture_code(ArchitectureSpec(name="torchvision:resnet18")) is None
