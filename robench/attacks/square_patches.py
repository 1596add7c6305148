"""Windows of the Square attack for Linf: patches of the input set to plus or minus ε.

Andriushchenko et al., ECCV 2020, algorithm 2 and section 3.4, as in fra31/auto-attack
(``square.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench import seeding
from robench.threat_models import ThreatModel

__all__ = ["Patches", "starting_stripes"]


def starting_stripes(inputs: Tensor, threat_model: ThreatModel, keys: Tensor) -> Tensor:
    """Vertical stripes of ±ε: (B, C, H, W) in [0, 1]."""
    channels, _, width = inputs.shape[1:]
    stripes = seeding.signs(keys, (channels, 1, width))
    return (inputs + threat_model.radius * stripes).clamp(0, 1)


@dataclass
class Patches:
    """Proposals: a window, and a sign for each of its channels.

    Every field is a tensor of one entry a proposal.
    """

    smallest: ClassVar[int] = 1
    """Side of the smallest window, in pixels"""
    has_centre: ClassVar[bool] = False
    """Whether windows are of odd sides"""
    starting_points = staticmethod(starting_stripes)

    top: Tensor
    left: Tensor
    signs: Tensor
    """±1, float32 (P, C)"""
    size: Tensor
    """int64 (P,): the window's side in pixels"""
    identity: Tensor
    """int64 (P,): a number below :meth:`count`, another for every proposal of a size"""

    @classmethod
    def draw(cls, keys: Tensor, size: Tensor, shape: Sequence[int]) -> Patches:
        """One proposal for each key.

        Args:
            keys: int64 (P,).
            size: int64 (P,).
            shape: the images' (C, H, W).
        """
        channels, height, width = shape
        draws = seeding.uniform(keys, (2 + channels,))
        # As in the reference, the last position is never drawn.
        top = (draws[:, 0] * (height - size).clamp_min(1)).long()
        left = (draws[:, 1] * (width - size).clamp_min(1)).long()
        positive = draws[:, 2:] >= 0.5
        powers = 2 ** torch.arange(channels, device=keys.device)
        identity = (top * width + left) * 2**channels + (positive * powers).sum(dim=1)
        return cls(top, left, positive.to(torch.float32) * 2 - 1, size, identity)

    @staticmethod
    def count(shape: Sequence[int]) -> int:
        """How many proposals of one size there are, for images (C, H, W)."""
        channels, height, width = shape
        return int(height * width * 2**channels)

    def points(self, best: Tensor, inputs: Tensor, threat_model: ThreatModel) -> Tensor:
        """The current points (P, C, H, W), with the patch at ±ε around the clean inputs."""
        height, width = inputs.shape[2:]
        y = torch.arange(height, device=inputs.device)
        x = torch.arange(width, device=inputs.device)
        in_rows = (y >= self.top[:, None]) & (y < (self.top + self.size)[:, None])
        in_columns = (x >= self.left[:, None]) & (x < (self.left + self.size)[:, None])
        inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]
        painted = (inputs + threat_model.radius * self.signs[:, :, None, None]).clamp(0, 1)
        return torch.where(inside, painted, best)
