"""The model in float64, its logits less their largest: nothing is lost to an offset.

In float32 logits around 10⁶ are multiples of 1/16, and a search that compares losses sees stairs. The
verdict stays that of the model as it is.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import margin
from robench.errors import AttackError, first_line
from robench.stand_ins.base import Setting, StandIn

_LARGEST_DISAGREEMENT = 0.05
"""Largest share of inputs that float64 may classify otherwise; a network that rounds to float32 or
half precision on its way may differ on a few"""


class Reduced(nn.Module):
    """A model that computes in float64; logits (N, K) less the largest of their row."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) → float64 (N, K), 0 the largest."""
        logits: Tensor = self.model(inputs.double())
        return logits - logits.detach().amax(dim=1, keepdim=True)


class Float64(StandIn):
    """Builds the model in float64."""

    exact = True

    def build(self, setting: Setting) -> SearchModel:
        """A copy of the model, cast.

        Raises:
            AttackError: it cannot be cast or run in float64, or answers otherwise there.
        """
        plain = SearchModel(setting.model)
        try:
            reduced = SearchModel(Reduced(copy.deepcopy(setting.model).double()))
            parts = torch.split(setting.inputs, max(1, setting.batch_size))
            logits = torch.cat([reduced.logits(part) for part in parts])
            expected = torch.cat([plain.logits(part) for part in parts])
        except Exception as error:  # The network may raise anything.
            said = f"{type(error).__name__}: {first_line(error)}"
            raise AttackError(f"the network cannot be run in float64: {said}") from error
        agree = (logits.argmax(dim=1) == expected.argmax(dim=1)).float().mean()
        if float(agree) < 1 - _LARGEST_DISAGREEMENT:
            raise AttackError(
                f"in float64 the network answers as it does for {agree:.0%} of the samples"
            )
        apart = margin(logits, setting.labels) - margin(expected, setting.labels)
        reduced.description = "fp64, logits less their largest"
        reduced.tolerance = 2 * float(apart.abs().max())
        return reduced
