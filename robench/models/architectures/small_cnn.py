"""Two convolutions and two linear layers without normalisation: what bounds are tight on."""

import torch
from torch import Tensor, nn

from robench.errors import UsageError
from robench.models.architectures import Classifier


class SmallCNN(Classifier):
    """3×3 convolutions of ``width`` and twice as many channels, the second with stride 2.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        side: height and width of the input.
        width: channels of the first convolution.
        hidden: features of the first linear layer.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        side: int = 8,
        width: int = 16,
        hidden: int = 100,
    ) -> None:
        super().__init__()
        if min(num_classes, in_channels, side, width, hidden) < 1:
            raise UsageError("num_classes, in_channels, side, width and hidden must be at least 1")
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(2 * width * ((side + 1) // 2) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, side, side) → (N, 2·width, ⌈side/2⌉, ⌈side/2⌉), non-negative."""
        return torch.relu(self.conv2(torch.relu(self.conv1(inputs))))

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Features → logits (N, num_classes), or what the last layer sees (N, hidden)."""
        hidden = torch.relu(self.fc1(maps.flatten(1)))
        out: Tensor = hidden if pre_logits else self.fc2(hidden)
        return out
