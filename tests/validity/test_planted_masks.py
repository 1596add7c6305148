"""Every planted mask keeps the network's accuracy, and its yardstick sees through it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from mask_gallery import GALLERY, Ground, answers, ground_of, withstands
from torch import Tensor

from robench.datasets import load_dataset

N = 8
EPS = 0.2
LEAVES = {"two-levels": 0.5, "entropy-detector": 0.25}
"""Masks that give some robustness, and how much at most."""
UNCHANGED = [
    "detached",
    "through-numpy",
    "refuses-gradients",
    "reversed-gradient",
    "scrambled-gradient",
    "decoy-gate",
    "memory",
    "temperature",
    "softmax",
    "one-hot",
    "fifth-raises",
]
"""Masks that decide exactly as the network behind them does."""
MASKS = [name for name, mask in GALLERY.items() if not mask.sound]
CONTROLS = [name for name, mask in GALLERY.items() if mask.sound]


@cache
def ground(eps: float = EPS) -> Ground:
    return ground_of("digits/Linf-0.2/standard", eps, "digits/Linf-0.2/pgd-at", samples=400)


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("digits").subset(24)
    return data.batch(range(24)), data.labels


@cache
def left_of_the_network() -> Tensor:
    inputs, labels = (whole[:N] for whole in digits())
    return withstands(GALLERY["bare"], ground(0.1), inputs, labels, steps=4, targets=0)[1]


def test_the_gallery_is_large_and_knows_its_controls():
    assert len(MASKS) >= 32
    assert len(CONTROLS) >= 6
    assert all(mask.name == name for name, mask in GALLERY.items())


@pytest.mark.parametrize("name", GALLERY)
def test_clean_accuracy_is_kept(name: str) -> None:
    inputs, labels = digits()
    mask = GALLERY[name]
    own = ground().network(inputs).argmax(dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        said = answers(mask, ground(), mask.build(ground()).eval(), inputs)
    bare, masked = ((one == labels).double().mean() for one in (own, said))
    assert masked >= bare - mask.costs
    if name in UNCHANGED:
        assert torch.equal(said, own)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if number % 3 else ())
        for number, name in enumerate(MASKS)
    ],
)
def test_the_yardstick_breaks_it(name: str) -> None:
    inputs, labels = (whole[:N] for whole in digits())
    correct, left = withstands(GALLERY[name], ground(), inputs, labels, steps=15, targets=0)
    assert correct.double().mean() >= 0.9
    assert left.double().mean() <= LEAVES.get(name, 0.0)


@pytest.mark.parametrize("name", UNCHANGED)
def test_it_leaves_what_it_leaves_of_the_network_itself(name: str) -> None:
    """At a radius where half of the samples survive, the same ones do."""
    inputs, labels = (whole[:N] for whole in digits())
    _, left = withstands(GALLERY[name], ground(0.1), inputs, labels, steps=4, targets=0)
    assert torch.equal(left, left_of_the_network())
    assert 0.2 < left.double().mean() < 0.9


def test_a_robust_network_is_left_alone() -> None:
    inputs, labels = (whole[:N] for whole in digits())
    _, left = withstands(GALLERY["straight-through"], ground(), inputs, labels, steps=5, targets=0)
    assert left.double().mean() >= 0.75


def test_the_yardstick_of_a_linear_model_is_exact() -> None:
    """Each rival's margin falls by ε times the ℓ1 norm of the weights' difference, at most."""
    inputs, labels = digits()
    near = ground(0.05)
    model = GALLERY["linear"].build(near)
    correct, left = withstands(GALLERY["linear"], near, inputs, labels, steps=15, targets=9)
    weight, logits = model[1].weight, model(inputs)
    slope = weight[labels][:, None] - weight[None]
    room = torch.where(slope > 0, inputs.flatten(1)[:, None], 1 - inputs.flatten(1)[:, None])
    falls = (slope.abs() * room.clamp(max=0.05)).sum(dim=2)
    lead = logits.gather(1, labels[:, None]) - logits
    safe = (lead > falls).scatter(1, labels[:, None], True).all(dim=1)
    assert torch.equal(left, safe & correct)
    assert 0 < safe.double().mean() < 1
