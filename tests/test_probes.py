from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robench.errors import UnknownNameError
from robench.probes import forward_hooks, layer_names, resolve_layer, undisturbed


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
        self.scale = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(self.scale(inputs))


def test_names_are_those_of_the_wrapped_network() -> None:
    model = Wrapper()
    assert list(layer_names(model)) == ["0", "1", "scale"]
    assert resolve_layer(model, "network.1") == ("1", model.network[1])
    assert resolve_layer(model, "1") == ("1", model.network[1])


def test_ambiguous_names_stay_long() -> None:
    model = Wrapper()
    model.add_module("0", nn.Identity())
    names = layer_names(model)
    assert names["network.0"] is model.network[0]
    assert resolve_layer(model, "0")[1] is model.get_submodule("0")
    assert all(resolve_layer(model, name) == (name, module) for name, module in names.items())


def test_shared_modules_have_one_name_and_answer_to_both() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    model.add_module("again", model[0])
    assert list(layer_names(model)) == ["0"]
    assert resolve_layer(model, "again") == ("0", model[0])


def test_unknown_layers() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'scale'"):
        resolve_layer(Wrapper(), "scal")
    with pytest.raises(UnknownNameError, match="unknown layer ''"):
        resolve_layer(Wrapper(), "")


def test_undisturbed_restores_flags_and_the_very_buffers() -> None:
    model = Wrapper()
    model.network[0].eval()
    norm = model.network[1]
    before = {name: (buffer, buffer.clone()) for name, buffer in norm.named_buffers()}
    with undisturbed(model):
        outputs = model.train()(torch.rand(4, 1, 3, 3))
        assert not torch.equal(norm.running_mean, before["running_mean"][1])
    for name, buffer in norm.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1])
    assert model.training
    assert not model.network[0].training
    outputs.sum().backward()


def test_shared_buffers_stay_shared_inside() -> None:
    first, second = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    second.running_mean = first.running_mean
    with undisturbed(nn.Sequential(first, second)):
        assert first.running_mean is second.running_mean
    assert first.running_mean is second.running_mean


def test_hooks_end_with_the_block() -> None:
    model = Wrapper()
    seen: list[str] = []

    def interrupted() -> None:
        with forward_hooks(
            [model],
            before=lambda *_: seen.append("before"),
            after=lambda *_: seen.append("after"),
        ):
            model(torch.rand(2, 1, 3, 3))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    model(torch.rand(2, 1, 3, 3))
    assert seen == ["before", "after"]
