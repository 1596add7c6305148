"""The graph computes what the network computes, and refuses what has no bounds."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.bounds.affine_graph import AffineGraph
from robench.errors import ModelError


class _Branches(nn.Module):
    """Every operation that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean = torch.tensor([0.3, -0.2, 0.1, 0.0])
        self.norm.running_var = torch.tensor([0.5, 1.5, 2.0, 1.0])
        self.bare = nn.BatchNorm2d(4, affine=False)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = (inputs - 0.5) / 0.25
        features = torch.relu(self.norm(self.conv(scaled)))
        features = self.bare(2 - features * 0.5 + features.flip(1))
        padded = F.pad(F.relu(self.grouped(features)), (1, 0, 1, 0))
        pooled = F.avg_pool2d(padded, 2)
        both = torch.cat([pooled.mean((2, 3)), -F.adaptive_avg_pool2d(padded, 1).flatten(1)], dim=1)
        return self.head(both)


def _network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return _Branches().eval().double()


def test_it_computes_what_the_network_computes() -> None:
    network = _network()
    example = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    graph = AffineGraph(network, example)
    other = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    assert torch.allclose(graph(other), network(other), atol=1e-12)


def test_it_follows_the_parameters() -> None:
    network = _network()
    example = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    graph = AffineGraph(network, example)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert torch.allclose(graph(example), network(example), atol=1e-12)


def test_magnitudes_are_the_largest_move_of_an_affine_operation() -> None:
    """Each operation moves by at most its magnitude, and by that in some corner."""
    example = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    graph = AffineGraph(_network(), example)
    values = graph.values(example)
    for operation in graph.operations:
        if operation.magnitude is None:
            continue
        centres = [values[place] for place in operation.parents]
        radii = [torch.rand_like(centre) for centre in centres]
        reach = operation.magnitude(*radii)
        start = operation.apply(*centres)
        # The first coordinate's steepest corner, from its gradient.
        roots = [centre.clone().requires_grad_() for centre in centres]
        first = operation.apply(*roots).flatten()[0]
        slopes = torch.autograd.grad(first, roots)
        corner = [c + r * s.sign() for c, r, s in zip(centres, radii, slopes, strict=True)]
        moved = (operation.apply(*corner) - start).abs()
        assert torch.isclose(moved.flatten()[0], reach.flatten()[0], atol=1e-12), operation.name
        assert (moved <= reach + 1e-12).all(), operation.name


@pytest.mark.parametrize(
    "forward, name",
    [
        (lambda x: x.flatten(1).tanh(), "tanh"),
        (lambda x: (x * x).flatten(1), "mul"),
        (lambda x: (1 / (x + 2)).flatten(1), "reciprocal"),
        (lambda x: F.pad(x, (1, 1), value=-1.0).flatten(1), "constant_pad_nd"),
        (lambda x: F.max_pool2d(x, 2).flatten(1), "max_pool2d"),
        (lambda x: x.flatten(1) @ x.flatten(1).T, "mm"),
    ],
)
def test_an_operation_without_bounds_is_named(forward: object, name: str) -> None:
    class Odd(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return forward(inputs)  # type: ignore[operator]

    with pytest.raises(ModelError, match=f"no bounds for the operation .*{name}"):
        AffineGraph(Odd(), torch.rand(2, 1, 2, 2, dtype=torch.float64))


def test_a_network_that_decides_by_values_is_refused() -> None:
    class Decides(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1) if inputs.sum() > 0 else -inputs.flatten(1)

    with pytest.raises(ModelError, match="cannot be written down"):
        AffineGraph(Decides(), torch.rand(2, 1, 2, 2, dtype=torch.float64))
