"""Shallow networks whose passes are cheap: what surrounds a pass is most of an attack on them.

Two convolutions and two linear layers each, trained adversarially for some seconds on scikit-learn's
digits, enlarged; the weights depend on nothing but the machine's rounding, and are kept under
``build/shallow``.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from robench.datasets import ArrayDataset, Dataset, load_dataset
from robench.models import wrap_module
from robench.models.wrapper import RobenchModel

_FOLDER = Path(__file__).resolve().parent.parent / "build" / "shallow"
_EPOCHS, _BATCH = 20, 64


def _colour() -> nn.Sequential:
    """3×32×32: 214,918 parameters, 1 million multiplications."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def _grey() -> nn.Sequential:
    """1×28×28: 1,606,886 parameters, 3 million multiplications."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


SHALLOW = {"3x32x32": _colour, "1x28x28": _grey}
"""By the shape of the images"""


def load_shallow(shape: str, n: int) -> tuple[RobenchModel, Dataset]:
    """A network of :data:`SHALLOW`, and the first ``n`` of the digits' test images at its size."""
    network = SHALLOW[shape]()
    path = _FOLDER / f"{shape}.pt"
    if not path.exists():
        _train(network, *_images("train", shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        torch.save(network.state_dict(), part)
        part.replace(path)
    network.load_state_dict(torch.load(path, weights_only=True))
    inputs, labels = _images("test", shape)
    data = ArrayDataset(inputs[:n], labels[:n], name=f"digits at {shape}", num_classes=10)
    name = f"shallow:{shape}"
    return wrap_module(network.eval(), num_classes=10, name=name, dataset=data.name), data


def _images(split: str, shape: str) -> tuple[Tensor, Tensor]:
    """Digits (N, C, H, W) in [0, 1], enlarged bilinearly, and their labels."""
    channels, height, width = map(int, shape.split("x"))
    data = load_dataset("digits", split=split)
    small = data.batch(range(len(data)))
    large = interpolate(small, (height, width), mode="bilinear", align_corners=False)
    return large.clamp(0, 1).expand(-1, channels, -1, -1).contiguous(), data.labels


def _train(network: nn.Sequential, inputs: Tensor, labels: Tensor, eps: float = 0.1) -> None:
    """Adversarial training with one step from a random start (Wong et al. 2020), ε growing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part in network:
            if isinstance(part, nn.Conv2d | nn.Linear):
                part.reset_parameters()
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
        for epoch in range(_EPOCHS):
            radius = eps * min(1.0, 2 * epoch / _EPOCHS)
            for rows in torch.split(torch.randperm(len(inputs)), _BATCH):
                x, y = inputs[rows], labels[rows]
                points = (x + radius * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_()
                (slope,) = torch.autograd.grad(cross_entropy(network(points), y), points)
                ahead = points.detach() + 1.25 * radius * slope.sign()
                points = torch.minimum(torch.maximum(ahead, x - radius), x + radius).clamp(0, 1)
                optimiser.zero_grad()
                torch.autograd.backward(cross_entropy(network(points), y))
                optimiser.step()
