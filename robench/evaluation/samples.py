"""What searches are run on, and what they found."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

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
    """(n, C, H, W): the adversarial input, for survivors the point of the smallest margin"""
    broken: Tensor
    """bool (n,)"""
    rank: Tensor
    """int64 (n,): the search that broke the sample, −1: none"""
    closest_margin: Tensor
    """(n,): the smallest margin that the search saw inside the ball"""
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
