"""Networks without weights, by name.

Every network here has the same three doors, named as in timm, so that training recipes and
attention methods need to know none of them:

* ``forward(inputs) -> logits``: (N, channels, H, W) → (N, num_classes);
* ``forward_features(inputs) -> maps``: the last feature map (N, C, h, w) after its ReLU, or a
  transformer's tokens (N, T, C);
* ``forward_head(maps, pre_logits=False)``: the logits of such a map, or the pooled features
  (N, C) before the classifier.

Parameter names are those of the papers' authors where a paper has published checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

__all__ = ["Classifier"]


class Classifier(nn.Module, ABC):
    """Features, global average pooling, a linear layer.

    ``classifier`` is the linear layer's name, as the state dict has it.
    """

    classifier: str = "fc"
    alternatives: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Other ways through the network that searches may take, such as a soft choice in place of a hard
    one: by name, the further arguments of ``forward``"""

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
