"""A network for processes that a test starts: they import this file, and no test's."""

from __future__ import annotations

from torch import Tensor, nn


class WatchingNetwork(nn.Module):
    """A linear classifier, and batch statistics of its inputs that its answer does not use."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(25 * in_channels, num_classes)
        self.watch = nn.BatchNorm2d(in_channels, affine=False)

    def forward(self, inputs: Tensor) -> Tensor:
        self.watch(inputs)
        return self.head(inputs.flatten(1))
