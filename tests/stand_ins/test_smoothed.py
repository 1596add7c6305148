"""Gradients averaged over noise: on surfaces whose mean slope is known."""

from __future__ import annotations

import torch
from attack_models import images, run_search
from torch import Tensor, nn

from robench.attacks.losses import LOSSES, Loss
from robench.attacks.pgd import PGD
from robench.models import wrap_module
from robench.stand_ins.base import Setting
from robench.stand_ins.smoothed import Smoothed, SmoothedModel
from robench.threat_models import ThreatModel

LINF = ThreatModel.of("Linf", "0.1")


class Ripples(nn.Module):
    """Two classes, apart by Σ wᵢ xᵢ, with ripples on it that turn nearly every slope round."""

    def __init__(self, weight: Tensor, pitch: float = 0.02) -> None:
        super().__init__()
        self.weight, self.pitch = nn.Parameter(weight), pitch

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        rippled = flat + 2 * self.pitch * (flat / self.pitch).sin()
        lead = (rippled - 0.5) @ self.weight
        return torch.stack((-lead, lead), dim=1)


class Stairs(Ripples):
    """The same without any slope."""

    def forward(self, inputs: Tensor) -> Tensor:
        flat = (inputs.flatten(1) / self.pitch).round() * self.pitch
        lead = (flat - 0.5) @ self.weight
        return torch.stack((-lead, lead), dim=1)


def smoothed(network: nn.Module, inputs: Tensor) -> SmoothedModel:
    model = wrap_module(network, num_classes=2, threat_model=LINF)
    labels = torch.ones(len(inputs), dtype=torch.int64)
    built = Smoothed().build(Setting(model, inputs, labels, LINF, 0, 8))
    assert isinstance(built, SmoothedModel)
    return built


def weight() -> Tensor:
    return torch.where(images(1, (36,), seed=2)[0] < 0.5, -1.0, 1.0)


def test_the_mean_slope_shows_where_ripples_hide_it() -> None:
    """Of x + 2p·sin(x/p) the slope is 1 + 2cos(x/p), the mean slope 1."""
    inputs = 0.3 + 0.4 * images(40)
    labels = torch.ones(40, dtype=torch.int64)
    loss = Loss(LOSSES["margin"], labels, labels)
    model = smoothed(Ripples(weight()), inputs)
    down = -weight().view(1, 1, 6, 6)
    hidden, seen = (
        float((part.sign() == down).float().mean())
        for part in (
            super(SmoothedModel, model).gradient(inputs, loss).gradient,
            model.gradient(inputs, loss).gradient,
        )
    )
    assert hidden < 0.72
    assert seen > 0.9
    assert model.passes == 16


def test_stairs_without_any_slope_are_climbed_by_what_the_draws_see() -> None:
    inputs = 0.5 + 0.02 * weight().view(1, 1, 6, 6) * (1 + images(20))
    network = Stairs(weight()).eval()
    labels = torch.ones(20, dtype=torch.int64)
    attack = PGD(LINF, steps=20, loss="margin")
    plain = run_search(attack, network, inputs, labels).found
    found = run_search(attack, network, inputs, labels, search=smoothed(network, inputs)).found
    assert not bool(plain.broken.any())
    assert bool(found.broken.all())
    # Twenty steps and the start, of which the last asks for no gradient.
    few = found.backwards < 21 * 16
    assert bool((found.backwards % 16 == 0).all() & few.all())


def test_batch_and_order_change_nothing() -> None:
    inputs = 0.5 + 0.1 * (images(12) - 0.5)
    labels = (Ripples(weight())(inputs).argmax(dim=1)).detach()
    network = Ripples(weight().round(), 1 / 64)
    attack = PGD(LINF, steps=4, restarts=2, loss="margin")
    search = smoothed(network, inputs)
    whole = run_search(attack, network, inputs, labels, search=search).found
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    other = run_search(
        attack, network, inputs, labels, search=search, order=order, batch_size=5
    ).found
    assert torch.equal(whole.broken[order], other.broken)
    assert torch.allclose(whole.adv_inputs[order], other.adv_inputs, atol=1e-5)
