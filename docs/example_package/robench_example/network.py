"""A network of one linear layer, to be named in cards and with ``--arch``."""

from __future__ import annotations

from torch import Tensor, nn


class OneLayer(nn.Module):
    """Logits are a linear function of the pixels of an image ``size`` x ``size``."""

    def __init__(self, num_classes: int, in_channels: int, size: int = 8) -> None:
        super().__init__()
        self.layer = nn.Linear(in_channels * size**2, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, size, size) → (N, num_classes)."""
        logits: Tensor = self.layer(inputs.flatten(1))
        return logits
