"""What a search is after: to leave a class, or to reach one. It is the threat model's, and data.

Every slot of an attack has one class that its goal is about: the label, which an untargeted search
leaves, or a target, which a targeted search has to reach. Losses, margins and the verdict on a
prediction follow from the class and the goal here, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robench.attacks.losses import LabelLoss, Loss, margin
from robench.threat_models import ThreatModel


@dataclass(frozen=True)
class Goal:
    """To leave the classes that searches are about, or ``towards`` them."""

    towards: bool = False

    @classmethod
    def of(cls, threat_model: ThreatModel) -> Goal:
        """What the adversary of a threat model wants."""
        return cls(towards=threat_model.targets is not None)

    def loss(self, function: LabelLoss, classes: Tensor, targets: Tensor) -> Loss:
        """What a search ascends, of a loss that grows as its label is left: ``classes`` (N,).

        ``targets`` (N,) are the wrong classes that a loss of two classes sets against the label; a
        targeted search sets the class that it wants against whichever is the strongest other.
        """
        return Loss(function, classes, targets, self.towards)

    def margin(self, logits: Tensor, classes: Tensor) -> Tensor:
        """How far each search is from its goal: (N, K), (N,) → (N,); negative where it is reached.

        Untargeted, the label's logit less the largest other; targeted, the largest other less the
        target's.
        """
        lead = margin(logits, classes)
        return -lead if self.towards else lead

    def reached(self, predictions: Tensor, classes: Tensor) -> Tensor:
        """bool (N,): whether predictions (N,) are what was wanted."""
        return (predictions == classes) == self.towards
