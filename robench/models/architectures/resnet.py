"""ResNet and PreActResNet with the stem for 32×32 images, and a residual network for 8×8 ones.

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
from robench.models.architectures import Classifier


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


def _check_sizes(num_classes: int, in_channels: int, width: int, stages: Sequence[int]) -> None:
    if min(num_classes, in_channels, width, *stages) < 1:
        raise UsageError("num_classes, in_channels, width and the stages must be at least 1")
    if len(stages) != 4:
        raise UsageError(f"a ResNet has four stages, got {len(stages)}")


def _four_stages(
    block: type[BasicBlock] | type[PreActBlock], width: int, counts: Sequence[int]
) -> list[nn.Sequential]:
    """Stages of 1, 2, 4 and 8 times ``width`` channels; all but the first halve the resolution."""
    stages, planes = [], width
    for number, count in enumerate(counts):
        stride = 2 if number else 1
        first = block(planes, planes * stride, stride)
        planes *= stride
        rest = [block(planes, planes) for _ in range(count - 1)]
        stages.append(nn.Sequential(first, *rest))
    return stages


class ResNet(Classifier):
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
        _check_sizes(num_classes, in_channels, width, stages)
        if head not in ("linear", "fc"):
            raise UsageError(f"head is 'linear' or 'fc', not {head!r}")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1, self.layer2, self.layer3, self.layer4 = _four_stages(BasicBlock, width, stages)
        self.classifier = head
        self.add_module(head, nn.Linear(8 * width, num_classes))

    def trunk(self, inputs: Tensor) -> Tensor:
        """Everything before ``layer4``: (N, in_channels, H, W) → (N, 4·width, H/4, W/4), ≥ 0."""
        maps = torch.relu(self.bn1(self.conv1(inputs)))
        early: Tensor = self.layer3(self.layer2(self.layer1(maps)))
        return early

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → feature map (N, 8·width, H/8, W/8), non-negative."""
        maps: Tensor = self.layer4(self.trunk(inputs))
        return maps


class PreActResNet(Classifier):
    """PreActResNet-18 for 32×32 images by default: 11.2 M parameters at width 64.

    Arguments and errors as :class:`ResNet`'s; the head is called ``linear``.
    """

    classifier = "linear"

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        stages: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        _check_sizes(num_classes, in_channels, width, stages)
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = _four_stages(
            PreActBlock, width, stages
        )
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → feature map (N, 8·width, H/8, W/8), non-negative."""
        maps = self.layer2(self.layer1(self.conv1(inputs)))
        return torch.relu(self.bn(self.layer4(self.layer3(maps))))


class DigitsResNet(Classifier):
    """For tiny images: no down-sampling, so that an 8×8 input keeps an 8×8 map.

    Stem, residual blocks of one width, classifier: 19,242 parameters by default. It accepts any
    image size; the feature map has the input's height and width.

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

    def stem(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → (N, width, H, W), non-negative."""
        return torch.relu(self.bn1(self.conv1(inputs)))

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → feature map (N, width, H, W), non-negative."""
        maps: Tensor = self.blocks(self.stem(inputs))
        return maps
