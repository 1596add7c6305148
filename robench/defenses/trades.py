"""TRADES (Zhang et al., ICML 2019, arXiv 1901.08573; reference: yaodongyu/TRADES)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses.inner_maximisers import ascend, gaussian_start, in_eval_mode, kl_divergence
from robench.defenses.recipe import AdversarialRecipe, Batch, Context
from robench.threat_models import ThreatModel

__all__ = ["Trades", "kl_attack"]

PAPER_STEP = 0.007 * 255 / 8
"""Their 0.007 at ε 8/255, as a share of ε."""


class Trades(AdversarialRecipe):
    """CE(x, y) + 6·KL(p(x) ‖ p(x')), x' maximising the KL term (their equation 5, 1/λ = 6)."""

    name: ClassVar[str] = "trades"
    paper: ClassVar[str | None] = (
        "Theoretically Principled Trade-off between Robustness and Accuracy (Zhang et al.)"
    )
    link: ClassVar[str | None] = "https://arxiv.org/abs/1901.08573"
    venue: ClassVar[str | None] = "ICML"
    year: ClassVar[int | None] = 2019

    beta: float = Field(6.0, ge=0)
    """Weight of the KL term, 1/λ in the paper."""
    attack_step_size: float = Field(PAPER_STEP, gt=0)

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``clean``: cross-entropy on x; ``kl``: β times the divergence."""
        adv_inputs = kl_attack(
            context.network,
            batch.inputs,
            context.threat_model,
            batch.keys,
            steps=self.attack_steps,
            step_size=self.attack_step_size,
        )
        clean_logits = context.network(batch.inputs)
        divergence = kl_divergence(clean_logits, context.network(adv_inputs))
        return {
            "clean": F.cross_entropy(clean_logits, batch.labels),
            "kl": self.beta * divergence.mean(),
        }


def kl_attack(
    network: nn.Module,
    inputs: Tensor,
    threat_model: ThreatModel,
    keys: Tensor,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """Maximise KL(p(x) ‖ p(x')) from 0.001·N(0, 1), in evaluation mode; the label is not used."""
    with in_eval_mode(network):
        with torch.no_grad():
            clean_logits = network(inputs)
        return ascend(
            lambda adv_inputs: kl_divergence(clean_logits, network(adv_inputs)),
            inputs,
            gaussian_start(inputs, keys),
            threat_model,
            steps=steps,
            step_size=step_size,
        )
