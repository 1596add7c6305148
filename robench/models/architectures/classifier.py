"""What every network here has in common: the way from a feature map to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["Classifier"]


class Classifier(nn.Module, ABC):
    """Features, global average pooling, a linear layer.

    ``classifier`` is the linear layer's name, as the state dict has it.
    """

    classifier: str = "fc"

    @abstractmethod
    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → the last feature map (N, C, h, w), or tokens (N, T, C)."""

    def pool(self, features: Tensor) -> Tensor:
        """Feature map (N, C, h, w) → (N, C)."""
        return features.mean(dim=(2, 3))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Features → logits (N, num_classes), or the pooled features (N, C)."""
        pooled = self.pool(features)
        if pre_logits:
            return pooled
        logits: Tensor = self.get_submodule(self.classifier)(pooled)
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) float → logits (N, num_classes)."""
        return self.forward_head(self.forward_features(inputs))
