"""Bounds against closed forms, and against what is reached inside the ball."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from robench import geometry
from robench.bounds.affine_graph import AffineGraph
from robench.bounds.propagation import METHODS, lowest_margins
from robench.records import BoundsMethod
from robench.threat_models import ThreatModel

_INPUTS = 0.5 + 0.2 * (
    torch.rand(4, 1, 3, 3, generator=torch.Generator().manual_seed(0)).double() - 0.5
)


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 2)
        self.second = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = torch.relu(self.first(inputs))
        return self.head(torch.relu(self.second(features) + features).flatten(1))


@cache
def _graph(kind: str) -> tuple[nn.Module, AffineGraph]:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 3)) if kind == "linear" else _Small()
    network = network.eval().double().requires_grad_(False)
    return network, AffineGraph(network, _INPUTS)


def _lowest(graph: AffineGraph, inputs: Tensor, labels: Tensor, *rest: object) -> Tensor:
    return lowest_margins(graph, inputs, labels, *rest).amin(dim=1)


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return own - logits.scatter(1, labels.unsqueeze(1), -math.inf).amax(dim=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_linear_network_has_its_closed_form(norm: str, method: BoundsMethod) -> None:
    """min over the ball of (w_y − w_j)·x + b is at the centre less ε times the dual norm."""
    network, graph = _graph("linear")
    labels = network(_INPUTS).argmax(dim=1)
    threat = ThreatModel.of(norm, "0.05")
    weight, bias = network[1].weight, network[1].bias
    expected = []
    for inputs, label in zip(_INPUTS.flatten(1), labels.tolist(), strict=True):
        lowest = []
        for other in {0, 1, 2} - {label}:
            slope = weight[label] - weight[other]
            dual = {"Linf": 1, "L2": 2, "L1": math.inf}[norm]
            at_centre = slope @ inputs + bias[label] - bias[other]
            lowest.append(float(at_centre - 0.05 * torch.linalg.vector_norm(slope, dual)))
        expected.append(min(lowest))
    found = _lowest(graph, _INPUTS, labels, threat, method)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_the_pixel_box_cuts_the_ball() -> None:
    """At the border of the box only half the interval is left."""
    network, graph = _graph("linear")
    inputs = torch.zeros_like(_INPUTS)
    labels = network(inputs).argmax(dim=1)
    found = _lowest(graph, inputs, labels, ThreatModel.of("Linf", "0.1"), "crown")
    weight, bias = network[1].weight, network[1].bias
    label = int(labels[0])
    expected = min(
        float(bias[label] - bias[j] + 0.1 * (weight[label] - weight[j]).clamp(max=0).sum())
        for j in {0, 1, 2} - {label}
    )
    assert found[0].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("norm, eps", [("Linf", "0.08"), ("L2", "0.2"), ("L1", "0.4")])
def test_no_point_of_the_ball_is_below_the_bound(norm: str, eps: str) -> None:
    network, graph = _graph("small")
    labels = network(_INPUTS).argmax(dim=1)
    threat = ThreatModel.of(norm, eps)
    lowest = torch.full((4,), math.inf, dtype=torch.float64)
    torch.manual_seed(0)
    for _ in range(50):
        point = _INPUTS + torch.randn_like(_INPUTS)
        for _ in range(8):
            point = geometry.project(point, _INPUTS, threat.norm, threat.radius)
            point.requires_grad_()
            margins = _margins(network(point), labels)
            lowest = torch.minimum(lowest, margins.detach())
            (slope,) = torch.autograd.grad(margins.sum(), point)
            step = geometry.steepest(slope, threat.norm)
            point = (point - 0.5 * threat.radius * step).detach()
    bounds = {m: _lowest(graph, _INPUTS, labels, threat, m) for m in METHODS}
    assert (bounds["ibp"] <= bounds["crown-ibp"] + 1e-12).all()
    assert (bounds["crown-ibp"] <= bounds["crown"] + 1e-12).all()
    assert (bounds["crown"] <= lowest + 1e-12).all()
    # Not empty words: linear bounds say much more than intervals, and are near to what is reached.
    assert (lowest - bounds["crown"]).mean() < 0.5 * (lowest - bounds["ibp"]).mean()


@pytest.mark.parametrize("method", METHODS)
def test_a_ball_without_extent_has_the_clean_margin(method: BoundsMethod) -> None:
    network, graph = _graph("small")
    logits = network(_INPUTS)
    labels = logits.argmax(dim=1)
    found = _lowest(graph, _INPUTS, labels, ThreatModel.of("Linf", "0.000000001"), method)
    assert torch.allclose(found, _margins(logits, labels), atol=1e-7)


def test_active_relus_alone_make_crown_exact() -> None:
    """Where no ReLU can change its sign the network is affine in the ball."""
    network, _ = _graph("small")
    with torch.no_grad():
        shifted = _Small().eval().double()
        shifted.load_state_dict(network.state_dict())
        shifted.first.bias += 10
        shifted.second.bias += 100
    graph = AffineGraph(shifted, _INPUTS)
    logits = shifted(_INPUTS).detach()
    labels = logits.argmax(dim=1)
    point = _INPUTS.clone().requires_grad_()
    threat = ThreatModel.of("Linf", "0.05")
    expected = []
    for row in range(4):
        slopes = torch.autograd.functional.jacobian(lambda x: shifted(x)[0], point[row : row + 1])
        label = int(labels[row])
        expected.append(
            min(
                float(logits[row, label] - logits[row, j])
                - 0.05 * float((slopes[label] - slopes[j]).abs().sum())
                for j in {0, 1, 2} - {label}
            )
        )
    found = _lowest(graph, _INPUTS, labels, threat, "crown")
    assert found.tolist() == pytest.approx(expected, abs=1e-9)


def test_bounds_can_be_trained() -> None:
    """Their gradient in the parameters is that of finite differences."""
    torch.manual_seed(2)
    network = _Small().eval().double()
    graph = AffineGraph(network, _INPUTS)
    labels = torch.tensor([0, 1, 2, 0])
    threat = ThreatModel.of("Linf", "0.02")

    def total() -> Tensor:
        return lowest_margins(graph, _INPUTS, labels, threat, "ibp").sum()

    parameters = [network.first.weight, network.second.bias, network.head.weight]
    slopes = torch.autograd.grad(total(), parameters)
    for parameter, slope in zip(parameters, slopes, strict=True):
        step = torch.zeros_like(parameter)
        step.view(-1)[1] = 1e-6
        with torch.no_grad():
            parameter += step
            above = total()
            parameter -= 2 * step
            below = total()
            parameter += step
        assert slope.view(-1)[1].item() == pytest.approx(float(above - below) / 2e-6, rel=1e-4)
