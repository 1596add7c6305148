"""MI-FGSM: PGD whose steps have momentum.

Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018 (arXiv 1710.06081), algorithm 1.
"""

from __future__ import annotations

from torch import Tensor

from robench.attacks.base import Gradient
from robench.attacks.pgd import PGD, PGDState
from robench.geometry import steepest
from robench.threat_models import ThreatModel


class MIFGSM(PGD):
    """Steps of ε / ``steps`` along gradients that are summed up, ``decay`` a step."""

    remembers = True

    def __init__(
        self,
        threat_model: ThreatModel,
        *,
        name: str = "mi-fgsm",
        steps: int = 10,
        decay: float = 1.0,
    ) -> None:
        super().__init__(
            threat_model, name=name, steps=steps, relative_step_size=1 / steps, random_start=False
        )
        self.decay = decay

    def ascent(self, seen: Gradient, state: PGDState) -> tuple[Tensor, Tensor]:
        """The momentum's steepest direction, and the momentum."""
        sizes = seen.gradient.abs().sum(dim=(1, 2, 3), keepdim=True)
        momentum = self.decay * state.memory + seen.gradient / sizes.clamp_min(1e-30)
        return steepest(momentum, self.threat_model.norm), momentum
