"""Cross-entropy and a divergence of clean and adversarial predictions: TRADES and MART."""

from abc import ABC

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from robench.defenses.inner_maximisers import cross_entropy_of, gaussian_start, kl_divergence
from robench.defenses.recipe import AdversarialRecipe, Context, Paper
from robench.defenses.training_data import Batch
from robench.probes import eval_mode

PAPER_STEP = 0.007 * 255 / 8
"""Their 0.007 at ε 8/255, as a share of ε."""

_FLOOR = 1e-4
"""Added inside MART's logarithm, as the reference does: a certain error stays finite."""


class _Divergence(AdversarialRecipe, ABC):
    """What both have; their attacks start from 0.001·N(0, 1) beside the input."""

    beta: float = Field(6.0, ge=0)
    """Weight of the divergence: 1/λ in TRADES's paper; λ in MART's, 6 in its reference code."""
    attack_step_size: float = Field(PAPER_STEP, gt=0)


class Trades(_Divergence):
    """CE(x, y) + 6·KL(p(x) ‖ p(x')), x' maximising the KL term (their equation 5, 1/λ = 6).

    The attack does not use the label. Zhang et al., ICML 2019; reference: yaodongyu/TRADES.
    """

    name = "trades"
    paper = Paper(
        "Theoretically Principled Trade-off between Robustness and Accuracy (Zhang et al.)",
        "https://arxiv.org/abs/1901.08573",
        "ICML",
        2019,
    )

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``clean``: cross-entropy on x; ``kl``: β times the divergence."""
        network, inputs = context.network, batch.inputs
        with eval_mode(network), torch.no_grad():
            attacked_from = network(inputs)
        start = gaussian_start(inputs, batch.keys)
        adv_inputs = self.maximise(
            context, lambda points: kl_divergence(attacked_from, network(points)), inputs, start
        )
        return trades_terms(network(inputs), network(adv_inputs), batch.labels, self.beta)


class Mart(_Divergence):
    """BCE(x', y) + 6·mean KL(p(x) ‖ p(x'))·(1 − p_y(x)), x' from PGD on CE (their equation 11).

    BCE is the boosted cross-entropy: −log p_y(x') − log(1 − max over k ≠ y of p_k(x')). Wang et
    al., ICLR 2020, openreview rklOg6EFwS; reference: YisenWang/MART.
    """

    name = "mart"
    paper = Paper(
        "Improving Adversarial Robustness Requires Revisiting Misclassified Examples (Wang et al.)",
        "https://openreview.net/forum?id=rklOg6EFwS",
        "ICLR",
        2020,
    )

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``adversarial`` and ``margin``: the two halves of BCE; ``kl``: β times the divergence."""
        network, labels = context.network, batch.labels
        start = gaussian_start(batch.inputs, batch.keys)
        objective = cross_entropy_of(network, labels)
        adv_inputs = self.maximise(context, objective, batch.inputs, start)
        return mart_terms(network(batch.inputs), network(adv_inputs), labels, self.beta)


def trades_terms(
    clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float
) -> dict[str, Tensor]:
    """The loss from logits (N, C) and labels (N,): ``clean`` and, ``beta`` times, ``kl``."""
    return {
        "clean": F.cross_entropy(clean_logits, labels),
        "kl": beta * kl_divergence(clean_logits, adv_logits).mean(),
    }


def mart_terms(
    clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, beta: float
) -> dict[str, Tensor]:
    """The loss from logits (N, C) and labels (N,): BCE's two halves and, ``beta`` times, ``kl``."""
    return {
        "adversarial": F.cross_entropy(adv_logits, labels),
        "margin": boosted_margin(adv_logits, labels).mean(),
        "kl": beta * weighted_kl(clean_logits, adv_logits, labels).mean(),
    }


def boosted_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """−log(1 − the largest wrong probability) of each sample: (N, C), (N,) → (N,)."""
    probabilities = logits.float().softmax(dim=1)
    wrong = probabilities.scatter(1, labels[:, None], -1.0).amax(dim=1)
    return -torch.log(1 + _FLOOR - wrong)


def weighted_kl(clean_logits: Tensor, adv_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(p(x) ‖ p(x'))·(1 − p_y(x)) of each sample; the gradient flows through the weight too."""
    true = clean_logits.softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
    return kl_divergence(clean_logits, adv_logits) * (1 - true)
