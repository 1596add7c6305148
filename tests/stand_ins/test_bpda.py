"""What is unfaithful is found and replaced; what is faithful is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attack_models import (
    LinearModel,
    digits_data,
    digits_network,
    images,
    linear_problem,
    run_search,
)
from torch import Tensor, nn

from robench.attacks.losses import LOSSES, Loss
from robench.attacks.pgd import PGD
from robench.errors import AttackError
from robench.geometry import norm_of
from robench.models import wrap_module
from robench.stand_ins.base import Setting
from robench.stand_ins.bpda import BPDA, find_unfaithful
from robench.stand_ins.guides import Convolution, Differences, Identity, Linear, explained
from robench.threat_models import ThreatModel

FINE = 4096.0


def quantised(inputs: Tensor) -> Tensor:
    return (inputs * FINE).round() / FINE


class _Backwards(torch.autograd.Function):
    """Quantises; its gradient points the other way, or anywhere."""

    @staticmethod
    def forward(ctx: object, inputs: Tensor, scrambled: bool) -> Tensor:
        ctx.scrambled = scrambled  # type: ignore[attr-defined]
        return quantised(inputs)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        (slope,) = gradients
        scrambled: bool = ctx.scrambled  # type: ignore[attr-defined]
        return (slope.roll(7, dims=-1).flip(-2) if scrambled else -slope), None


class Made(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


class Within(nn.Module):
    """The same in a forward, and in no module of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.function, self.network = function, network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(self.function(inputs))
        return logits


class Ungraded(Within):
    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


class Decoy(nn.Module):
    """Answers as one network, with the gradients of another."""

    def __init__(self, network: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.network, self.other = network, other

    def forward(self, inputs: Tensor) -> Tensor:
        shown = self.other(inputs)
        logits: Tensor = self.network(inputs).detach() + shown - shown.detach()
        return logits


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded": quantised,
    "detached": lambda inputs: inputs.detach(),
    "numpy": lambda inputs: torch.from_numpy(inputs.detach().numpy().round(4)),
    "integers": lambda inputs: (inputs * 10_000).to(torch.int32) / 10_000,
    "reversed": lambda inputs: _Backwards.apply(inputs, False),
    "scrambled": lambda inputs: _Backwards.apply(inputs, True),
}


def setting(network: nn.Module, inputs: Tensor, labels: Tensor, threat: ThreatModel) -> Setting:
    classes = int(network(inputs[:1]).shape[1])
    model = wrap_module(network.eval(), num_classes=classes, threat_model=threat)
    return Setting(model, inputs, labels, threat, 0, 64)


@pytest.mark.parametrize("is_module", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_masked_linear_model_falls_exactly_where_it_can(name: str, is_module: bool) -> None:
    """Of two classes the optimum is known; the mask moves it by its own step at most."""
    model, inputs, labels, distance, threat = linear_problem("Linf", 2, count=40)
    function = FUNCTIONS[name]
    parts = nn.Sequential(Made(function), model)
    network: nn.Module = parts if is_module else Within(function, model)
    with torch.no_grad():
        labels = network(inputs).argmax(dim=1)
    given = setting(network, inputs, labels, threat)
    (found,) = find_unfaithful(given)
    assert found.told < 0.2
    assert ("Made" in found.where) == is_module
    stand_in = BPDA().build(given)
    assert "the identity for" in stand_in.description
    attack = PGD(threat, steps=6, loss="margin")
    # At twice a step of the mask from the boundary nothing depends on it.
    clear = (distance - threat.radius).abs() > 2 / FINE
    sure = clear & (distance < threat.radius)
    assert bool(sure.any())
    shown = run_search(attack, network, inputs, labels, search=stand_in).found
    assert torch.equal(shown.broken[clear], sure[clear])
    plain = run_search(attack, network, inputs, labels).found
    assert int(plain.broken.sum()) < int(sure.sum())


def test_the_forward_pass_stays_as_it_is() -> None:
    inputs, labels = digits_data()[2][:20], digits_data()[3][:20]
    network = Within(quantised, digits_network())
    stand_in = BPDA().build(setting(network, inputs, labels, ThreatModel.of("Linf", "0.1")))
    loss = Loss(LOSSES["margin"], labels, labels)
    with torch.no_grad():
        expected = network(inputs)
    assert torch.equal(stand_in.logits(inputs), expected)
    seen = stand_in.gradient(inputs, loss)
    assert torch.equal(seen.logits, expected)
    assert torch.equal(
        seen.gradient[:3], stand_in.gradient(inputs[:3], loss.at(torch.arange(3)))[2]
    )
    assert not any(module._forward_hooks for module in network.modules())
    # The identity, times its fitted scale: the bare network's own gradient.
    leaf = quantised(inputs).requires_grad_()
    logits = digits_network()(leaf)
    (bare,) = torch.autograd.grad(logits, leaf, loss(logits.detach())[1])
    cosine = nn.functional.cosine_similarity(bare.flatten(1), seen.gradient.flatten(1))
    assert bool((cosine > 0.9999).all())


def test_gradients_that_are_switched_off_are_switched_on() -> None:
    model, inputs, labels, distance, threat = linear_problem("Linf", 2, count=20)
    network = Ungraded(lambda x: x, model)
    stand_in = BPDA().build(setting(network, inputs, labels, threat))
    assert "no_grad around network" in stand_in.description
    attack = PGD(threat, steps=6, loss="margin")
    found = run_search(attack, network, inputs, labels, search=stand_in).found
    assert torch.equal(found.broken, distance < threat.radius)
    assert torch.is_grad_enabled()


class _Straight(torch.autograd.Function):
    """What a module gives, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: object, inputs: Tensor, module: nn.Module) -> Tensor:
        result: Tensor = module(inputs)
        return result

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class StraightThrough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rounded = Made(quantised)

    def forward(self, inputs: Tensor) -> Tensor:
        passed: Tensor = _Straight.apply(inputs, self.rounded)
        return passed


def test_an_honest_backward_pass_of_ones_own_is_left_alone() -> None:
    model, inputs, labels, _, threat = linear_problem("Linf", 2, count=20)
    network = nn.Sequential(StraightThrough(), model)
    assert find_unfaithful(setting(network, inputs, labels, threat)) == []


def test_a_decoys_gradients_are_not_followed() -> None:
    model, inputs, labels, distance, threat = linear_problem("Linf", 2, count=20)
    other = linear_problem("Linf", 2, seed=5)[0]
    network = Decoy(model, other)
    stand_in = BPDA().build(setting(network, inputs, labels, threat))
    found = run_search(
        PGD(threat, steps=6, loss="margin"), network, inputs, labels, search=stand_in
    ).found
    assert torch.equal(found.broken, distance < threat.radius)


def test_a_thermometer_is_seen_through_by_its_own_differences() -> None:
    """Its channels count the levels below a pixel: their mean is the pixel, by steps of an eighth."""
    model, inputs = linear_problem("Linf", 2)[0], images(40, (1, 4, 4))
    levels = (torch.arange(8).view(1, 8, 1, 1) + 0.5) / 8

    class Thermometer(nn.Module):
        def __init__(self, network: LinearModel) -> None:
            super().__init__()
            self.mean = nn.Conv2d(8, 1, 1, bias=False)
            nn.init.constant_(self.mean.weight, 1 / 8)
            self.network = network

        def forward(self, inputs: Tensor) -> Tensor:
            logits: Tensor = self.network(self.mean((inputs > levels).float()))
            return logits

    network = Thermometer(model).requires_grad_(False)
    threat = ThreatModel.of("Linf", "0.07")  # each pixel is within reach of one level
    with torch.no_grad():
        labels = network(inputs).argmax(dim=1)
    stand_in = BPDA().build(setting(network, inputs, labels, threat))
    assert "its own differences for what enters mean" in stand_in.description
    # Every pixel at the level below or above, whichever is worse for the label.
    rows = model.weight
    assert isinstance(rows, Tensor)
    weight = (rows[1] - rows[0]).view(1, 1, 4, 4) * (1 - 2 * labels).view(-1, 1, 1, 1)
    low, high = (((inputs + s * 0.07)[:, None] > levels).float().mean(2) for s in (-1, 1))
    worst = torch.where(weight > 0, high, low)
    with torch.no_grad():
        breakable = model(worst).argmax(dim=1) != labels
    attack = PGD(threat, steps=10, loss="margin")
    found = run_search(attack, network, inputs, labels, search=stand_in).found
    assert int(breakable.sum()) > 0
    assert torch.equal(found.broken, breakable)


@pytest.mark.parametrize("eps", ["0.02", "0.3"])
def test_a_faithful_network_is_left_alone(eps: str) -> None:
    inputs, labels = digits_data()[2][:64], digits_data()[3][:64]
    for network in (digits_network(), nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh())):
        given = setting(network, inputs, labels, ThreatModel.of("Linf", eps))
        assert find_unfaithful(given) == []
        with pytest.raises(AttackError, match="nothing to replace"):
            BPDA().build(given)


def test_a_network_that_cannot_be_looked_into_says_so() -> None:
    model, inputs, labels, _, threat = linear_problem("Linf", 2, count=8)
    network = Within(lambda x: torch.from_numpy(x.numpy()), model)
    with pytest.raises(AttackError, match="bpda cannot look into the network: RuntimeError"):
        BPDA().build(setting(network, inputs, labels, threat))


def test_guides_find_the_maps_that_movements_come_from() -> None:
    source = images(200, (2, 5, 5)) - 0.5
    assert (found := Identity.fitted(source, 3 * source)) is not None
    assert found.scale == pytest.approx(3.0)
    assert Identity.fitted(source, source[:, :1]) is None
    blur = nn.Conv2d(2, 3, 3, padding=1, bias=False).requires_grad_(False)
    convolution = Convolution.fitted(source, blur(source), 3)
    assert convolution is not None
    assert explained(convolution(source), blur(source)) > 0.99
    flat = nn.Linear(50, 4, bias=False).requires_grad_(False)
    linear = Linear.fitted(source, flat(source.flatten(1)))
    assert linear is not None
    assert explained(linear(source), flat(source.flatten(1))) > 0.99
    assert float(norm_of(linear(source) - flat(source.flatten(1)), "Linf").max()) < 0.2


def test_differences_are_for_what_pixels_decide_alone() -> None:
    source = images(4, (2, 6, 6))
    assert Differences.of(0.1, source, lambda x: (x.sum(1, keepdim=True) * 9).round()) is not None
    assert Differences.of(0.1, source, lambda x: x.roll(1, dims=2).round()) is None
    assert Differences.of(0.1, source, lambda x: x.flatten(1)) is None
    assert Differences.of(0.0, source, lambda x: x) is None
    linear = Differences(0.25)
    slopes = linear.slopes(source, lambda x: 8 * x.sum(dim=1, keepdim=True))
    assert all(torch.allclose(slope, torch.full_like(slope, 8.0), atol=1e-4) for slope in slopes)
