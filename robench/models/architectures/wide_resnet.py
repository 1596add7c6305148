"""WideResNet (Zagoruyko & Komodakis 2016, 1605.07146) in AGKD-BML's and TRADES' naming.

``conv1, block1..3.layer.N.{bn1,conv1,bn2,conv2,convShortcut}, bn1, fc``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.errors import UsageError

__all__ = ["WideBlock", "WideResNet", "blocks_per_stage", "initialise", "wide_stage", "widths"]


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


class _Stage(nn.Module):
    """Only there because the authors' names have a ``layer`` level."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = self.layer(maps)
        return out


def wide_stage(count: int, in_planes: int, planes: int, stride: int, dropout: float) -> nn.Module:
    """``count`` blocks under the name ``layer``; the first changes width and resolution."""
    return _Stage(
        [
            WideBlock(in_planes if i == 0 else planes, planes, stride if i == 0 else 1, dropout)
            for i in range(count)
        ]
    )


def blocks_per_stage(depth: int) -> int:
    """Blocks in each of the three stages of a WideResNet of this depth.

    Raises:
        UsageError: the depth is not 6n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise UsageError(
            f"a WideResNet's depth is 6n + 4, not {depth}", hint="Use 10, 16, 22, 28, 34, 70 …"
        )
    return (depth - 4) // 6


def widths(widen_factor: int, stem: int) -> tuple[int, int, int, int]:
    """Channels of the stem and of the three stages.

    Raises:
        UsageError: a factor or a stem below 1.
    """
    if min(widen_factor, stem) < 1:
        raise UsageError("widen_factor and stem must be at least 1")
    return stem, stem * widen_factor, 2 * stem * widen_factor, 4 * stem * widen_factor


def initialise(network: nn.Module) -> None:
    """He's initialisation by fan-out; classifier biases start at 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


class WideResNet(nn.Module):
    """WRN-``depth``-``widen_factor`` for 32×32 images.

    The authors' AGKD-BML network returns (feature map, pooled features, logits) and switches
    itself to training mode; this one returns logits and leaves its mode alone. The same
    parameters give the same logits.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        depth: 6n + 4; 28 and 34 are the papers'.
        widen_factor: 10 in the papers.
        dropout: rate between a block's convolutions, in training.
        stem: channels of the first convolution.

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
    ) -> None:
        super().__init__()
        count = blocks_per_stage(depth)
        w0, w1, w2, w3 = widths(widen_factor, stem)
        self.conv1 = nn.Conv2d(in_channels, w0, 3, 1, 1, bias=False)
        self.block1 = wide_stage(count, w0, w1, 1, dropout)
        self.block2 = wide_stage(count, w1, w2, 2, dropout)
        self.block3 = wide_stage(count, w2, w3, 2, dropout)
        self.bn1 = nn.BatchNorm2d(w3)
        self.fc = nn.Linear(w3, num_classes)
        initialise(self)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → feature map (N, 4·stem·widen_factor, H/4, W/4), ≥ 0."""
        maps = self.block3(self.block2(self.block1(self.conv1(inputs))))
        return torch.relu(self.bn1(maps))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map → logits (N, num_classes), or the pooled features."""
        pooled = maps.mean(dim=(2, 3))
        if pre_logits:
            return pooled
        logits: Tensor = self.fc(pooled)
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) float → logits (N, num_classes)."""
        return self.forward_head(self.forward_features(inputs))
