"""A network whose answer is known: the class is the nearest of evenly spaced brightnesses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Brightness", "build", "level", "trained"]


class Brightness(nn.Module):
    """Logits ``sharpness · (2 m l − l²)`` for mean brightness m and the classes' levels l."""

    def __init__(self, num_classes: int, in_channels: int, sharpness: float) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_channels, 2, 1, bias=False)
        self.head = nn.Linear(2, num_classes)
        self.sharpness = sharpness

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(inputs).mean(dim=(2, 3)))
        return self.sharpness * logits


def build(num_classes: int = 10, in_channels: int = 3, sharpness: float = 40.0) -> nn.Module:
    """Untrained, as an architecture is."""
    return Brightness(num_classes, in_channels, sharpness)


def level(label: int, num_classes: int) -> float:
    """The brightness in [0, 1] that stands for a class."""
    return label / (num_classes - 1)


def trained(num_classes: int = 10, in_channels: int = 3, sharpness: float = 40.0) -> nn.Module:
    """With the weights that classify every brightness correctly."""
    network = Brightness(num_classes, in_channels, sharpness)
    levels = torch.arange(num_classes) / (num_classes - 1)
    with torch.no_grad():
        network.mix.weight.fill_(1 / in_channels)
        network.head.weight.copy_(levels[:, None].expand(-1, 2))
        network.head.bias.copy_(-(levels**2))
    return network.eval()
