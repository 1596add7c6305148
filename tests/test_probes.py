from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robench.errors import UnknownNameError
from robench.probes import forward_hooks, layer_names, pulled_back, resolve_layer, undisturbed


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pulling_back_is_autograds_to_the_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(6, 5, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(5, 4, generator=generator).to(dtype)
    outputs = (inputs @ weight).tanh() * 1e30
    slope = torch.randn(6, 4, generator=generator).to(dtype)
    slope[0, 0], slope[1] = -0.0, 0.0
    slope[2, 1], slope[3, 2], slope[4, 3] = math.nan, math.inf, 1e-30
    (expected,) = torch.autograd.grad(outputs, inputs, slope, retain_graph=True)
    with torch.no_grad():
        found = pulled_back(slope, outputs, inputs)
    assert found is not None
    same = found.view(torch.uint8) == expected.view(torch.uint8)
    assert bool(same.all())


def test_nothing_is_pulled_back_to_what_had_no_part() -> None:
    inputs, others = torch.rand(2, 3).requires_grad_(), torch.rand(2, 3).requires_grad_()
    assert pulled_back(torch.ones(2, 3), inputs * 2, others) is None
