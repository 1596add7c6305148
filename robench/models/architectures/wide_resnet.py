"""WideResNet (Zagoruyko & Komodakis 2016, 1605.07146) in AGKD-BML's and TRADES' naming.

``conv1, block1..3.layer.N.{bn1,conv1,bn2,conv2,convShortcut}, bn1, fc``.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from robench.errors import UsageError
from robench.models.architectures import Classifier


class WideBlock(nn.Module):
    """Pre-activation block; where the width changes, the skip takes the first activation."""

    def __init__(self, in_planes: int, planes: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        # The authors' spelling: it is part of the parameter names.
        self.convShortcut: nn.Conv2d | None = None
        if in_planes != planes:
            self.convShortcut = nn.Conv2d(in_planes, planes, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, in_planes, h, w) → (N, planes, ⌈h/stride⌉, ⌈w/stride⌉), any sign."""
        active = torch.relu(self.bn1(maps))
        skip = maps if self.convShortcut is None else self.convShortcut(active)
        out = self.dropout(torch.relu(self.bn2(self.conv1(active))))
        summed: Tensor = self.conv2(out) + skip
        return summed


def _stage(count: int, in_planes: int, planes: int, stride: int, dropout: float) -> nn.Sequential:
    """Blocks under the name ``layer``, a level that only the authors' names need."""
    first = WideBlock(in_planes, planes, stride, dropout)
    rest = [WideBlock(planes, planes, 1, dropout) for _ in range(count - 1)]
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))


class WideResNet(Classifier):
    """WRN-``depth``-``widen_factor`` for 32×32 images.

    The authors' AGKD-BML network returns (feature map, pooled features, logits) and switches
    itself to training mode; this one returns logits and leaves its mode alone. The same
    parameters give the same logits.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        depth: 6n + 4; 28 and 34 are the papers'.
        widen_factor: the stages have 1, 2 and 4 times ``stem · widen_factor`` channels; 10 in the
            papers.
        dropout: rate between a block's convolutions, in training.
        stem: channels of the first convolution.
        sub_block: add an unused ``sub_block1``, which ANCRA's files contain.

    Raises:
        UsageError: a depth other than 6n + 4, or sizes below 1.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
        stem: int = 16,
        sub_block: bool = False,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UsageError(
                f"a WideResNet's depth is 6n + 4, not {depth}", hint="Use 10, 16, 22, 28, 34, 70 …"
            )
        if min(widen_factor, stem) < 1:
            raise UsageError("widen_factor and stem must be at least 1")
        count = (depth - 4) // 6
        width = stem * widen_factor
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False)
        self.block1 = _stage(count, stem, width, 1, dropout)
        if sub_block:
            self.sub_block1 = _stage(count, stem, width, 1, dropout)
        self.block2 = _stage(count, width, 2 * width, 2, dropout)
        self.block3 = _stage(count, 2 * width, 4 * width, 2, dropout)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # He's initialisation by fan-out.
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def trunk(self, inputs: Tensor) -> Tensor:
        """Everything before ``block3``."""
        maps: Tensor = self.block2(self.block1(self.conv1(inputs)))
        return maps

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → feature map (N, 4·stem·widen_factor, H/4, W/4), ≥ 0."""
        return torch.relu(self.bn1(self.block3(self.trunk(inputs))))
