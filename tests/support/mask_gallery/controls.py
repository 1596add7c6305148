"""Sound models of other kinds: what is said of them is a false alarm."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from mask_gallery.before_network import Quantise
from mask_gallery.ground import Builder, Ground, PlantedMask, Yardstick
from mask_gallery.parts import MeanOf, StraightThrough, jittered


def _trained(ground: Ground, network: nn.Module, epochs: int = 15, noise: float = 0.0) -> nn.Module:
    """Trained for a moment on the ground's samples, with normal noise of a deviation."""
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(epochs):
        for part in torch.randperm(len(ground.labels)).split(50):
            inputs = ground.inputs[part]
            inputs = inputs + noise * torch.randn_like(inputs)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), ground.labels[part]).backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def _fresh(make: Callable[[int, int], nn.Module], noise: float = 0.0) -> Builder:
    """Trains a network that is made of the numbers of pixels and classes."""

    @cache
    def build(ground: Ground) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = make(ground.inputs[0].numel(), int(ground.labels.max()) + 1)
            return _trained(ground, network, noise=noise)

    return build


def _layers(activation: type[nn.Module]) -> Callable[[int, int], nn.Module]:
    return lambda pixels, classes: nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 64), activation(), nn.Linear(64, classes)
    )


def _linear(pixels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))


def _control(name: str, build: Builder, costs: float = 0.2) -> PlantedMask:
    return PlantedMask(name, build, yardstick=Yardstick((build,)), costs=costs)


MASKS = (
    _control("bare", lambda g: g.network),
    _control("straight-through", lambda g: nn.Sequential(StraightThrough(Quantise(256)), g.robust)),
    _control("mlp", _fresh(_layers(nn.ReLU))),
    _control("linear", _fresh(_linear)),
    _control("tanh", _fresh(_layers(nn.Tanh))),
    _control("noise-trained", _fresh(_layers(nn.ReLU), noise=0.2)),
    _control("mean-ensemble", lambda g: MeanOf(*(jittered(g.robust, s) for s in range(3)))),
)
