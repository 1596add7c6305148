"""What is tried on every sample, as it is for common corruptions: neither a search nor an adversary."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from robench.threat_models import ThreatModel


@runtime_checkable
class Trials(Protocol):
    """Inputs that are tried one after the other whatever came of the others: no search, no adversary.

    Each is judged for every sample, also for those that the model misclassifies as they are.
    """

    name: str
    threat_model: ThreatModel
    names: Sequence[str]
    """Of the trials, in order"""
    needed: Sequence[str]
    """Those of them that have to be there where their images are read, not made"""

    def trial(self, number: int, inputs: Tensor, keys: Tensor) -> Tensor | None:
        """Trial ``number`` of inputs (B, C, H, W) in [0, 1] with their samples' keys, int64 (B,): of
        the same shape, each a function of its input and key alone; None: it means nothing for them."""
        ...
