"""What masks are planted on, and how a planted mask is described."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robench.datasets import Dataset, load_dataset
from robench.models import load_model
from robench.models.architectures import Classifier

Judged = Literal["plain", "majority", "fresh", "alone", "patient"]
"""How a model's answer to an input is had.

``plain``: one pass; ``majority``: the class that most of 32 draws say; ``fresh``: by a model that
has seen nothing else; ``alone``: in a batch of its own; ``patient``: asked again if it raises.
"""


@dataclass(frozen=True, eq=False)
class Ground:
    """The networks and samples that masks are made of.

    Attributes:
        network: what is masked; inputs (N, C, H, W) in [0, 1] → logits (N, K).
        robust: another one, trained adversarially, behind which detectors hide.
        inputs: float32 (M, C, H, W) in [0, 1], training samples.
        labels: int64 (M,).
        eps: the radius, ℓ∞, that the masks will be attacked with.
        levels: grey levels of the data, beside 0.
    """

    network: Classifier
    robust: Classifier
    inputs: Tensor
    labels: Tensor
    eps: float
    levels: int = 16


Builder = Callable[[Ground], nn.Module]
Penalty = Callable[[Ground], Callable[[Tensor], Tensor]]


def bare(ground: Ground) -> nn.Module:
    """The network behind the mask."""
    return ground.network


@dataclass(frozen=True)
class Yardstick:
    """A hand-made attack that knows the mask.

    Attributes:
        behind: models whose gradients are followed, one after the other.
        land: the last touch to a candidate: (clean inputs, candidates, ε) → candidates.
        penalty: what the search adds to its loss, of inputs (N, C, H, W) → (N,); small is good.
        judged: how verdicts are had.
    """

    behind: tuple[Builder, ...] = (bare,)
    land: Callable[[Tensor, Tensor, Ground], Tensor] | None = None
    penalty: Penalty | None = None
    judged: Judged = "plain"


@dataclass(frozen=True)
class PlantedMask:
    """A model that looks more robust than it is, or, among the controls, one that does not.

    Attributes:
        name: of the mask.
        build: makes it, anew at each call.
        causes: names of diagnoses or flags, any of which says what is wrong; none for a control.
        yardstick: what breaks it.
        costs: how far its clean accuracy may lie below the bare network's, in [0, 1].
        branches: whether it hides the network behind a robust one; such a mask is for networks
            that are not robust themselves.
        beyond: why validation cannot reach the yardstick, where it cannot.
    """

    name: str
    build: Builder
    causes: tuple[str, ...] = ()
    yardstick: Yardstick = field(default_factory=Yardstick)
    costs: float = 0.02
    branches: bool = False
    beyond: str = ""

    @property
    def sound(self) -> bool:
        """Whether it is a control, whose number is what it seems."""
        return not self.causes


def plain_network(name: str) -> Classifier:
    """A zoo model's own network, which must read pixels in [0, 1] as they are.

    Raises:
        TypeError: it has no features and head, or its card says that pixels are changed first.
    """
    model = load_model(name)
    probe = torch.rand(1, 1, 2, 2)
    if not isinstance(model.network, Classifier) or not torch.equal(model.prepare(probe), probe):
        raise TypeError(f"{name} is no plain classifier: masks need its features, head and pixels")
    return model.network


def ground_of(
    network: str,
    eps: float,
    robust: str,
    data: Dataset | str = "digits",
    levels: int = 16,
    samples: int = 1000,
) -> Ground:
    """Networks of the zoo, with the first training samples of a data set."""
    train = load_dataset(data, split="train") if isinstance(data, str) else data
    count = min(samples, len(train))
    return Ground(
        plain_network(network),
        plain_network(robust),
        train.batch(range(count)),
        train.labels[:count],
        eps,
        levels,
    )
