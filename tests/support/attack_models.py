"""Models with known answers, and a bare query that drives an attack without the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.attacks.base import Attack, Gradient, Others, Slots, slot_keys
from robench.attacks.losses import Loss
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.queries import Queries
from robench.evaluation.samples import Samples, SearchResult
from robench.evaluation.search import Search
from robench.evaluation.traces import Tracer
from robench.results.traces import TraceParts
from robench.threat_models import Norm, ThreatModel


class DoubleInside(nn.Module):
    """Float64 arithmetic between float32 borders.

    What a batch's composition changes in the last bits of float64 is lost in the rounding to
    float32, so the outputs of a sample do not depend on the samples beside it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.double().eval()

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.module(inputs.double())
        return out.float()


class TinyCNN(nn.Module):
    """Two convolutions and a linear layer; smooth, so that gradients have no kinks."""

    def __init__(self, classes: int = 6, channels: int = 1, side: int = 6, seed: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8 * ((side + 1) // 2) ** 2, classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                scale = 2.0 / max(parameter[0].numel(), 1) ** 0.5 if parameter.dim() > 1 else 0.1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        self.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.conv2(torch.tanh(self.conv1(inputs))))
        out: Tensor = self.fc(hidden.flatten(1))
        return out


class LinearModel(nn.Module):
    """logits = W·x + b on flattened inputs, in float64 inside."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.double())
        self.register_buffer("bias", bias.double())

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.flatten(1).double() @ self.weight.T + self.bias).float()


class ExactNetwork(nn.Module):
    """A two-layer network whose arithmetic is exact, so no sum depends on its order or batch.

    Every class has a twin with 7/8 of its logit, next to it in rank and yet hard to reach, so that
    searches for different targets succeed on different samples.

    Weights are multiples of 1/256 below 4, activations float32: their products and sums fit into
    float64. Casting to float32 between the layers rounds each number by itself, forwards and
    backwards alike.
    """

    def __init__(
        self, dimensions: int = 36, hidden: int = 24, classes: int = 6, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def dyadic(*shape: int) -> Tensor:
            drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return (drawn.clamp(-3, 3) * 32).round() / 32

        self.register_buffer("first", dyadic(dimensions, hidden))
        half = dyadic(hidden, (classes + 1) // 2)
        self.register_buffer("second", torch.cat((half, half * 0.875), dim=1)[:, :classes])
        self.register_buffer("shift", self.first.sum(dim=0) / 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = (inputs.flatten(1).double() @ self.first - self.shift).float().relu()
        return (hidden.double() @ self.second).float()


class Recorder(nn.Module):
    """Passes inputs through and keeps a copy of every batch."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.seen: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(inputs.detach().clone())
        out: Tensor = self.module(inputs)
        return out


class Watching(nn.Module):
    """Calls ``watch`` on every batch of inputs before the model sees it."""

    def __init__(self, module: nn.Module, watch: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.module = module
        self.watch = watch

    def forward(self, inputs: Tensor) -> Tensor:
        self.watch(inputs.detach())
        out: Tensor = self.module(inputs)
        return out


class PlainQuery:
    """A query with no engine behind it; keeps every batch of points it was asked about."""

    def __init__(self, module: nn.Module) -> None:
        self.model = SearchModel(module)
        self.seen: list[Tensor] = []

    def logits(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        self.seen.append(points.detach().clone())
        return self.model.logits(points)

    def gradient(self, points: Tensor, loss: Loss, rows: Tensor | None = None) -> Gradient:
        self.seen.append(points.detach().clone())
        return self.model.gradient(points, loss)

    def jacobian(self, points: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.seen.append(points.detach().clone())
        return self.model.jacobian(points)

    def steepness(self, points: Tensor, rivals: Tensor, labels: Tensor, norm: Norm) -> Tensor:
        self.seen.append(points.detach().clone())
        return self.model.steepness(points, rivals, labels, norm)[1]


def images(count: int, shape: tuple[int, ...] = (1, 6, 6), seed: int = 0) -> Tensor:
    """Uniform images: float32 (count, *shape) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, *shape), generator=generator)


def predictions(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        labels: Tensor = model(inputs).argmax(dim=1)
    return labels


def slots_for(
    model: nn.Module, inputs: Tensor, labels: Tensor, search: int = 0, seed: int = 0
) -> Slots:
    """Slots of one search for all inputs, keyed as the engine keys them."""
    with torch.no_grad():
        clean = model(inputs)
    ids = [f"sample-{index}" for index in range(len(labels))]
    searches = torch.full_like(labels, search)
    keys = slot_keys(seeding.sample_keys(seed, ids), "test", searches)
    return Slots(inputs, labels, clean, keys, searches)


_DUAL: dict[Norm, float] = {"Linf": 1.0, "L2": 2.0, "L1": torch.inf}


def linear_problem(
    norm: Norm,
    classes: int,
    count: int = 64,
    side: int = 4,
    seed: int = 0,
    weight: Tensor | None = None,
) -> tuple[LinearModel, Tensor, Tensor, Tensor, ThreatModel]:
    """A linear classifier far from the box's borders, so that only the ball constrains.

    Returns:
        The model (its weight (classes, side²) random unless given), inputs (n, 1, side, side), labels (the model's own predictions), the exact
        distance of each input to the decision boundary in ``norm``, and a threat model whose
        radius splits the samples in half, with no distance within 2 % of it.
    """
    generator = torch.Generator().manual_seed(seed)
    dimensions = side * side
    if weight is None:
        weight = torch.randn(classes, dimensions, generator=generator)
    weight = weight.double()
    inputs = 0.45 + 0.1 * torch.rand(count * 2, 1, side, side, generator=generator)
    flat = inputs.flatten(1).double()
    bias = -(weight @ flat.mean(dim=0))  # puts the boundaries in the middle of the inputs
    model = LinearModel(weight, bias)
    logits = flat @ weight.T + bias
    labels = logits.argmax(dim=1)
    lead = logits.gather(1, labels[:, None]) - logits
    slope = weight[labels][:, None, :] - weight[None]
    steepness = torch.linalg.vector_norm(slope, ord=_DUAL[norm], dim=2)
    distance = (lead / steepness).scatter(1, labels[:, None], torch.inf).amin(dim=1)
    radius = float(distance.median())
    clear = (distance / radius - 1).abs() > 0.02
    kept = clear.nonzero().squeeze(1)[:count]
    threat_model = ThreatModel.of(norm, repr(round(radius, 6)))
    return model, inputs[kept], labels[kept], distance[kept], threat_model


@cache
def digits_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits, 1,200 to train on and 597 to test on: inputs and labels of both."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    inputs = torch.tensor(bundle.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(bundle.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return inputs[train], labels[train], inputs[test], labels[test]


@cache
def digits_network(
    epochs: int = 4,
    eps: float = 0.0,
    channels: tuple[int, int] = (16, 32),
    batch_norm: bool = False,
) -> nn.Module:
    """A small network trained for a moment; with ``eps``, on one-step adversarial inputs."""
    first, second = channels
    inputs, labels, _, _ = digits_data()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norms = [nn.BatchNorm2d(first), nn.BatchNorm2d(second)] if batch_norm else []
        network = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            *norms[:1],
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            *norms[1:],
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * second, 10),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(epochs):
            for part in torch.randperm(len(labels)).split(100):
                x, y = inputs[part], labels[part]
                if eps:
                    start = x + eps * (2 * torch.rand_like(x) - 1)
                    start = start.clamp(0, 1).requires_grad_()
                    loss = nn.functional.cross_entropy(network(start), y)
                    (slope,) = torch.autograd.grad(loss, start)
                    x = (start.detach() + eps * slope.sign()).clamp(x - eps, x + eps).clamp(0, 1)
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x), y).backward()
                optimizer.step()
    return network.eval().requires_grad_(False)


def robust_digits_network(batch_norm: bool = False) -> nn.Module:
    """One that was trained on adversarial inputs of eps 0.15 under Linf."""
    return digits_network(epochs=6, eps=0.15, channels=(8, 16), batch_norm=batch_norm)


@dataclass
class SearchRun:
    """What a search gave, with the search for a look inside."""

    found: SearchResult
    search: Search[Any]

    @property
    def total_steps(self) -> int:
        """Steps of all searches, if none ends early."""
        return len(self.search.samples) * self.search.searches * self.search.attack.most_steps()


def run_search(
    attack: Attack[Any],
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 64,
    order: Tensor | None = None,
    search: SearchModel | None = None,
    seed: int = 0,
    ids: list[str] | None = None,
    only: Tensor | None = None,
    judges_every_step: bool = False,
    others: Others | None = None,
    trace: TraceParts | None = None,
    **kwargs: Any,
) -> SearchRun:
    """Search all samples; ``order`` permutes them, each keeps its own id, and its place in ``trace``."""
    order = torch.arange(len(labels)) if order is None else order
    ids = ids or [f"sample-{index}" for index in range(len(labels))]
    chosen = inputs[order]
    adjudicator = Adjudicator(model, attack.threat_model)
    clean = adjudicator.logits(chosen)
    keys = seeding.sample_keys(seed, [ids[index] for index in order.tolist()])
    run: Search[Any] = Search(
        attack,
        Queries(search or SearchModel(model), clean.shape[1], batch_size),
        adjudicator,
        Samples(chosen, labels[order], clean, keys, others),
        batch_size=batch_size,
        only=only,
        judges_every_step=judges_every_step,
        tracer=None
        if trace is None
        else Tracer(trace.writer(), 0, order, improvements=attack.kind == "query"),
    )
    return SearchRun(run.run(**kwargs), run)
