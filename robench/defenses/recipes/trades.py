"""TRADES (Zhang et al., ICML 2019, arXiv 1901.08573; reference: yaodongyu/TRADES)."""

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robench.defenses.inner_maximisers import gaussian_start, kl_divergence
from robench.defenses.recipe import AdversarialRecipe, Context, Paper
from robench.defenses.training_data import Batch
from robench.probes import eval_mode

PAPER_STEP = 0.007 * 255 / 8
"""Their 0.007 at ε 8/255, as a share of ε."""


class Trades(AdversarialRecipe):
    """CE(x, y) + 6·KL(p(x) ‖ p(x')), x' maximising the KL term (their equation 5, 1/λ = 6).

    The attack starts from 0.001·N(0, 1); it does not use the label.
    """

    name = "trades"
    paper = Paper(
        "Theoretically Principled Trade-off between Robustness and Accuracy (Zhang et al.)",
        "https://arxiv.org/abs/1901.08573",
        "ICML",
        2019,
    )

    beta: float = Field(6.0, ge=0)
    """Weight of the KL term, 1/λ in the paper."""
    attack_step_size: float = Field(PAPER_STEP, gt=0)

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``clean``: cross-entropy on x; ``kl``: β times the divergence."""
        network, inputs = context.network, batch.inputs
        with eval_mode(network), torch.no_grad():
            attacked_from = network(inputs)
        adv_inputs = self.maximise(
            context,
            lambda points: kl_divergence(attacked_from, network(points)),
            inputs,
            gaussian_start(inputs, batch.keys),
        )
        return trades_terms(network(inputs), network(adv_inputs), batch.labels, self.beta)


def trades_terms(
    clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float
) -> dict[str, Tensor]:
    """The loss from logits (N, C) and labels (N,): ``clean`` and, ``beta`` times, ``kl``."""
    return {
        "clean": F.cross_entropy(clean_logits, labels),
        "kl": beta * kl_divergence(clean_logits, adv_logits).mean(),
    }
