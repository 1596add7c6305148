"""Every corruption: the function, and the constants of its five severities.

Two sets of constants are published, one for images of 32×32 pixels and one for those of 224×224
(github.com/hendrycks/robustness, ``ImageNet-C/create_c``). Differences are data: what makes the images
is the same at every size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from robench import seeding
from robench.corruptions import blur, digital, noise, weather
from robench.corruptions.images import cut_to_levels, grey_levels
from robench.corruptions.spatter import spatter
from robench.errors import UsageError
from robench.records.corruptions import BENCHMARK, FURTHER, SEVERITIES
from robench.registry import unknown_name

Constants = Literal["cifar", "imagenet"]
CONSTANTS: tuple[Constants, ...] = get_args(Constants)

_SMALL = 96
"""Pixels of the shorter side below which images are taken for small ones"""


@dataclass(frozen=True)
class Corruption:
    """One corruption: what makes it, and of each set of constants those of five severities."""

    function: Callable[..., Any]
    cifar: tuple[Any, ...]
    imagenet: tuple[Any, ...]
    of_colours: bool = False
    """Whether it has no meaning for images without colours"""

    def constants(self, kind: Constants, severity: int) -> tuple[float, ...]:
        """Those of a severity, 1 to 5."""
        found = getattr(self, kind)[severity - 1]
        return found if isinstance(found, tuple) else (found,)


def _of_side(side: int, *rows: tuple[float, float, float]) -> tuple[tuple[float, ...], ...]:
    """Pixels at a size of ``side`` as shares of it."""
    return tuple(tuple(value / side for value in row) for row in rows)


CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian_noise": Corruption(
        noise.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    "shot_noise": Corruption(noise.shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Corruption(
        noise.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)
    ),
    "defocus_blur": Corruption(
        blur.defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": Corruption(
        blur.glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": Corruption(
        blur.motion_blur,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": Corruption(
        blur.zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": Corruption(
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": Corruption(
        weather.frost,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": Corruption(
        weather.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": Corruption(
        weather.brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)
    ),
    "contrast": Corruption(
        digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)
    ),
    "elastic_transform": Corruption(
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        # Made at 224, with constants that were meant for 244.
        _of_side(
            224,
            (488, 170.8, 24.4),
            (488, 19.52, 48.8),
            (12.2, 2.44, 4.88),
            (17.08, 2.44, 4.88),
            (29.28, 2.44, 4.88),
        ),
    ),
    "pixelate": Corruption(
        digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)
    ),
    "jpeg_compression": Corruption(
        digital.jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)
    ),
    "speckle_noise": Corruption(
        noise.speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)
    ),
    "gaussian_blur": Corruption(blur.gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    "spatter": Corruption(
        spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
    ),
    "saturate": Corruption(
        digital.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        of_colours=True,
    ),
}


def constants_for(shape: tuple[int, ...]) -> Constants:
    """The constants that images (C, H, W) are corrupted by: CIFAR's below 96 pixels."""
    return "cifar" if min(shape[-2:]) < _SMALL else "imagenet"


def corruptions_for(channels: int) -> tuple[str, ...]:
    """The names of the corruptions that mean something for images of so many channels, in order."""
    names = (*BENCHMARK, *FURTHER)
    return tuple(name for name in names if channels == 3 or not CORRUPTIONS[name].of_colours)


def corrupt(
    inputs: Tensor,
    keys: Tensor,
    corruption: str,
    severity: int,
    constants: Constants | None = None,
) -> Tensor:
    """Images as a corruption leaves them: each depends on itself and its key alone.

    Args:
        inputs: float32 (N, C, H, W) in [0, 1]; they are rounded to 256 grey levels first.
        keys: int64 (N,), :func:`robench.seeding.sample_keys`.
        corruption, severity: a name of :data:`CORRUPTIONS`, and 1 to 5.
        constants: whose; None: :func:`constants_for` the images' size.

    Returns:
        float32 (N, C, H, W) on the 256 grey levels in [0, 1], on the inputs' device.

    Raises:
        UnknownNameError: there is no such corruption, or no such set of constants.
        UsageError: no such severity; or a corruption of colours, and there are none.
    """
    if corruption not in CORRUPTIONS:
        raise unknown_name("corruption", corruption, list(CORRUPTIONS))
    if constants is not None and constants not in CONSTANTS:
        raise unknown_name("set of constants", constants, list(CONSTANTS))
    if severity not in SEVERITIES:
        raise UsageError(f"severity is {severity}", hint="It is a whole number from 1 to 5")
    found = CORRUPTIONS[corruption]
    if found.of_colours and inputs.shape[1] != 3:
        raise UsageError(
            f"{corruption} has no meaning for images of {inputs.shape[1]} channels",
            hint="It changes colours: leave it out",
        )
    if len(inputs) == 0:
        return inputs
    kind = constants or constants_for(tuple(inputs.shape))
    own = seeding.derive(keys.cpu(), seeding.tag(f"corruption/{corruption}"), severity)
    images = grey_levels(inputs.cpu().double().numpy()) / 255
    corrupted = found.function(images, own, *found.constants(kind, severity))
    return torch.from_numpy(cut_to_levels(corrupted)).to(inputs.device, torch.float32)
