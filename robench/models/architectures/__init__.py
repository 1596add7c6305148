"""Networks without weights, by name.

Every convolutional network here has the same three doors, named as in timm, so that training
recipes and attention methods need to know none of them:

* ``forward(inputs) -> logits``: (N, channels, H, W) → (N, num_classes);
* ``forward_features(inputs) -> maps``: the last feature map (N, C, h, w), after its ReLU;
* ``forward_head(maps, pre_logits=False)``: the logits of such a map, or the pooled features
  (N, C) before the classifier.

Parameter names are those of the papers' authors where a paper has published checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robench.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Registry[Callable[..., nn.Module]] = Registry("architecture")
"""Name → callable taking ``num_classes``, ``in_channels`` and the architecture's arguments."""

_HERE = "robench.models.architectures"

for _name, _target, _summary in (
    (
        "digits_resnet",
        "digits_resnet:DigitsResNet",
        "residual CNN without down-sampling for 8x8 inputs, 20 k parameters",
    ),
):
    ARCHITECTURES.add(_name, f"{_HERE}.{_target}", _summary)
