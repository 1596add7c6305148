"""ResNet and PreActResNet with the stem for 32×32 images.

Parameter names are those of the CIFAR networks that most published checkpoints use: ``conv1,
bn1, layer1..4.N.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}`` and a head called ``linear``
(AutoAttack's example, TRADES) or ``fc`` (ANCRA); the pre-activation form has ``bn`` and
``linear`` instead. He et al. 2016a (1512.03385) and 2016b (1603.05027).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robench.errors import UsageError

__all__ = ["BasicBlock", "PreActBlock", "PreActResNet", "ResNet", "check_stages", "stage"]


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, projection skip where the shape changes, ReLU after the sum."""

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """(N, in_planes, h, w) → (N, planes, ⌈h/stride⌉, ⌈w/stride⌉), non-negative."""
        out = torch.relu(self.bn1(self.conv1(maps)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(maps))


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each convolution; the skip takes the first activation."""

    def __init__(self, in_planes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride, bias=False))

    def forward(self, maps: Tensor) -> Tensor:
        """(N, in_planes, h, w) → (N, planes, ⌈h/stride⌉, ⌈w/stride⌉), any sign."""
        active = torch.relu(self.bn1(maps))
        skip = maps if self.shortcut is None else self.shortcut(active)
        out = self.conv1(active)
        out = self.conv2(torch.relu(self.bn2(out)))
        summed: Tensor = out + skip
        return summed


def stage(
    block: type[BasicBlock] | type[PreActBlock],
    in_planes: int,
    planes: int,
    count: int,
    stride: int,
) -> list[nn.Module]:
    """``count`` blocks, of which the first changes width and resolution."""
    return [
        block(in_planes if i == 0 else planes, planes, stride if i == 0 else 1)
        for i in range(count)
    ]


def check_stages(num_classes: int, in_channels: int, width: int, stages: Sequence[int]) -> None:
    """Refuse sizes that make no network.

    Raises:
        UsageError: a size below 1, or not four stages.
    """
    if min(num_classes, in_channels, width, *stages) < 1:
        raise UsageError("num_classes, in_channels, width and the stages must be at least 1")
    if len(stages) != 4:
        raise UsageError(f"a ResNet has four stages, got {len(stages)}")


class ResNet(nn.Module):
    """ResNet-18 for 32×32 images by default: 11.2 M parameters at width 64.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
        stages: blocks in each of the four stages, ``(2, 2, 2, 2)`` for ResNet-18.
        head: name of the classifier in the state dict, ``linear`` or ``fc``.

    Raises:
        UsageError: sizes below 1, not four stages, or a head of another name.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        stages: Sequence[int] = (2, 2, 2, 2),
        head: str = "linear",
    ) -> None:
        super().__init__()
        check_stages(num_classes, in_channels, width, stages)
        if head not in ("linear", "fc"):
            raise UsageError(f"head is 'linear' or 'fc', not {head!r}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(*stage(BasicBlock, width, width, stages[0], 1))
        self.layer2 = nn.Sequential(*stage(BasicBlock, width, 2 * width, stages[1], 2))
        self.layer3 = nn.Sequential(*stage(BasicBlock, 2 * width, 4 * width, stages[2], 2))
        self.layer4 = nn.Sequential(*stage(BasicBlock, 4 * width, 8 * width, stages[3], 2))
        self.head = head
        self.add_module(head, nn.Linear(8 * width, num_classes))

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → feature map (N, 8·width, H/8, W/8), non-negative."""
        maps: Tensor = torch.relu(self.bn1(self.conv1(inputs)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map → logits (N, num_classes), or the pooled features (N, 8·width)."""
        pooled = maps.mean(dim=(2, 3))
        if pre_logits:
            return pooled
        logits: Tensor = self.get_submodule(self.head)(pooled)
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) float → logits (N, num_classes)."""
        return self.forward_head(self.forward_features(inputs))


class PreActResNet(nn.Module):
    """PreActResNet-18 for 32×32 images by default: 11.2 M parameters at width 64.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
        stages: blocks in each of the four stages.

    Raises:
        UsageError: sizes below 1, or not four stages.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        stages: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        check_stages(num_classes, in_channels, width, stages)
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(*stage(PreActBlock, width, width, stages[0], 1))
        self.layer2 = nn.Sequential(*stage(PreActBlock, width, 2 * width, stages[1], 2))
        self.layer3 = nn.Sequential(*stage(PreActBlock, 2 * width, 4 * width, stages[2], 2))
        self.layer4 = nn.Sequential(*stage(PreActBlock, 4 * width, 8 * width, stages[3], 2))
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → feature map (N, 8·width, H/8, W/8), non-negative."""
        maps: Tensor = self.conv1(inputs)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps = layer(maps)
        return torch.relu(self.bn(maps))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map → logits (N, num_classes), or the pooled features (N, 8·width)."""
        pooled = maps.mean(dim=(2, 3))
        if pre_logits:
            return pooled
        logits: Tensor = self.linear(pooled)
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) float → logits (N, num_classes)."""
        return self.forward_head(self.forward_features(inputs))
