"""The memory that a gradient needs is measured, not met."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robench.acceleration import timing as sizes
from robench.acceleration.timing import bytes_per_input, fitting_batch

INPUTS = torch.rand(4, 3, 8, 8)


class Powers(nn.Module):
    """Autograd keeps the input, which squaring needs, and a mask of one byte a pixel."""

    def forward(self, inputs: Tensor) -> Tensor:
        squared = inputs**2
        return torch.relu(squared).flatten(1)


class Affine(nn.Module):
    """Autograd keeps the weights, however many inputs there are."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(192, 10)
        self.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc(inputs.flatten(1))


class Failing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        raise RuntimeError("no")


def test_what_autograd_keeps_is_counted_for_each_input() -> None:
    # Squaring keeps its input, ReLU its output: two maps of 192 float32.
    assert bytes_per_input(Powers(), INPUTS) == 2 * 192 * 4
    assert bytes_per_input(Powers(), INPUTS[:1]) == 2 * 192 * 4
    assert bytes_per_input(Affine(), INPUTS) == 0
    assert bytes_per_input(Failing(), INPUTS) == 0


@pytest.mark.parametrize(
    ("inputs_that_fit", "size"), [(10_000, 256), (256, 256), (255, 128), (3, 2), (0.5, 1)]
)
def test_the_batch_is_halved_until_it_fits(monkeypatch, inputs_that_fit, size) -> None:
    memory = inputs_that_fit * 2 * 192 * 4 / sizes._SHARE
    monkeypatch.setattr(sizes, "total_memory", lambda _: memory)
    monkeypatch.setattr(sizes, "_COMFORTABLE", 0)
    assert fitting_batch(Powers(), INPUTS) == size


@pytest.mark.parametrize(("comfortable", "size"), [(100, 256), (512, 512), (5000, 1024)])
def test_small_networks_start_with_larger_batches(monkeypatch, comfortable, size) -> None:
    monkeypatch.setattr(sizes, "_COMFORTABLE", comfortable * 2 * 192 * 4)
    assert fitting_batch(Powers(), INPUTS) == size


def test_a_wanted_size_is_kept_if_it_fits() -> None:
    assert fitting_batch(Powers(), INPUTS, at_most=1000) == 1000
