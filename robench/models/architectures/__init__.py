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

from typing import TYPE_CHECKING

from robench.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: Registry[Callable[..., nn.Module]] = Registry(
    "architecture", "robench.architectures"
)
"""Name → callable taking ``num_classes``, ``in_channels`` and the architecture's arguments."""

_HERE = "robench.models.architectures"

for _name, _target, _summary in (
    ("digits_resnet", "resnet:DigitsResNet", "8x8 residual CNN, no down-sampling, 20 k"),
    ("digits_resnet_ra", "reverse_attention:DigitsResNetRA", "the same with reverse attention"),
    ("vit", "vit:VisionTransformer", "small vision transformer, for 8x8 inputs by default, 40 k"),
    ("resnet18", "resnet:ResNet", "ResNet-18 with the stem for 32x32 inputs"),
    ("preact_resnet18", "resnet:PreActResNet", "PreActResNet-18 with the stem for 32x32 inputs"),
    (
        "wide_resnet",
        "wide_resnet:WideResNet",
        "WRN-depth-widen_factor, AGKD-BML's and TRADES' names",
    ),
    (
        "resnet18_ra",
        "reverse_attention:ResNetRA",
        "ResNet-18 with reverse attention, ANCRA's names",
    ),
    (
        "wide_resnet_ra",
        "reverse_attention:WideResNetRA",
        "WRN with reverse attention, ANCRA's names",
    ),
):
    ARCHITECTURES.add(_name, f"{_HERE}.{_target}", _summary)
