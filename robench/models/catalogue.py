"""Architectures and other collections of models, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from robench.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from robench.models.wrapper import RobenchModel
    from robench.records import ModelCard

ARCHITECTURES: Registry[Callable[..., nn.Module]] = Registry(
    "architecture", "robench.architectures"
)
"""Name → callable taking ``num_classes``, ``in_channels`` and the architecture's arguments."""

_HERE = "robench.models.architectures"

for _name, _target, _summary in (
    ("digits_resnet", "resnet:DigitsResNet", "8x8 residual CNN, no down-sampling, 20 k"),
    ("digits_resnet_ra", "reverse_attention:DigitsResNetRA", "the same with reverse attention"),
    ("small_cnn", "small_cnn:SmallCNN", "two convolutions, two linear layers, 60 k at 8x8"),
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

SOURCES: Final[Registry[Callable[[str], ModelCard | RobenchModel]]] = Registry("model source")
"""Name before the colon → function of what comes after it. Their packages are optional."""

SOURCES.add(
    "hf",
    "robench.models.sources:hub_card",
    "hf:OWNER/NAME[@REVISION] or hf:./FOLDER, models of timm and transformers",
)
SOURCES.add(
    "robustbench",
    "robench.models.sources:load_from_robustbench",
    "robustbench:DATASET/THREAT/NAME",
)
