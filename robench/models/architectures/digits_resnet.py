"""A residual network for tiny images: no down-sampling, so that an 8×8 input keeps an 8×8 map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import UsageError
from robench.models.architectures.resnet import BasicBlock

__all__ = ["DigitsResNet"]


class DigitsResNet(nn.Module):
    """Stem, residual blocks of one width, global average pooling, linear classifier.

    With the default arguments it has 19,242 parameters. It accepts any image size; the feature
    map has the input's height and width.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        width: channels of every feature map.
        blocks: number of residual blocks.

    Raises:
        UsageError: a size below 1.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, width: int = 32, blocks: int = 1
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, width, blocks) < 1:
            raise UsageError("num_classes, in_channels, width and blocks must be at least 1")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(BasicBlock(width, width) for _ in range(blocks)))
        self.fc = nn.Linear(width, num_classes)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → feature map (N, width, H, W), non-negative."""
        maps: Tensor = self.blocks(torch.relu(self.bn1(self.conv1(inputs))))
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map → logits (N, num_classes), or the pooled features (N, width)."""
        pooled = maps.mean(dim=(2, 3))
        if pre_logits:
            return pooled
        logits: Tensor = self.fc(pooled)
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) float → logits (N, num_classes)."""
        return self.forward_head(self.forward_features(inputs))
