"""What searches are run on, and what they found."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robench.evaluation.adjudicate import Verdicts

__all__ = ["Found", "Samples"]


@dataclass
class Samples:
    """What an attack is run on. The first axis of every tensor is the sample."""

    inputs: Tensor
    """float32 (n, C, H, W) in [0, 1]"""
    labels: Tensor
    """int64 (n,)"""
    clean_logits: Tensor
    """float32 (n, K), of the output under attack"""
    keys: Tensor
    """int64 (n,), :func:`robench.seeding.sample_keys`"""

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor) -> Samples:
        """The given samples, int64 (n′,) or bool (n,)."""
        return Samples(
            self.inputs[rows], self.labels[rows], self.clean_logits[rows], self.keys[rows]
        )


@dataclass
class Found:
    """What the searches found, by sample."""

    adv_inputs: Tensor
    """(n, C, H, W): the adversarial input, for survivors the point of the smallest margin; the
    clean input where there is neither"""
    broken: Tensor
    """bool (n,)"""
    rank: Tensor
    """int64 (n,): the search that broke the sample, −1: none"""
    prediction: Tensor
    """int64 (n,): the verdict on ``adv_inputs``, as it was judged when it was kept; −1 where there
    is no input to judge"""
    margin: Tensor
    """float32 (n,): its margin by that verdict, NaN where there is none"""
    size: Tensor
    """float32 (n,): its perturbation's norm, NaN where there is none"""
    closest_margin: Tensor
    """(n,): the smallest margin that the search saw inside the ball, of survivors"""
    found_size: Tensor
    """(n,): for minimum-norm attacks the smallest adversarial perturbation, NaN elsewhere"""
    forwards: Tensor
    """int64 (n,)"""
    backwards: Tensor
    """int64 (n,)"""
    rank_margins: Tensor
    """(n, ranks): the smallest margin of each search that ran to its end, at the ball's border
    estimated where the search was outside; +inf for others"""
    errors: dict[int, str] = field(default_factory=dict)
    """Message by sample, where the model failed"""
    zero_gradients: int = 0
    """Searches whose first gradient was zero everywhere"""
    nonfinite_gradients: int = 0
    unverified: int = 0
    """Candidates of the search that the original model classified correctly"""

    def keep(self, rows: Tensor, points: Tensor, verdicts: Verdicts) -> None:
        """Take points (k, C, H, W) with the verdicts on them for ``rows``, int64 (k,)."""
        self.adv_inputs[rows] = points
        self.prediction[rows] = verdicts.prediction
        self.margin[rows] = verdicts.margin
        self.size[rows] = verdicts.size

    def forget(self, rows: Tensor, inputs: Tensor) -> None:
        """There is nothing to show for ``rows``, bool (n,): of ``inputs`` (n, …), the clean ones."""
        self.adv_inputs[rows] = inputs[rows]
        self.prediction[rows] = -1
        self.margin[rows] = torch.nan
        self.size[rows] = torch.nan
        self.closest_margin[rows] = torch.inf
