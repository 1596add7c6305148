"""AGKD-BML: attention-guided distillation and bidirectional metric learning.

Wang et al., ICCV 2021, arXiv 2108.06017; reference: hongw579/AGKD-BML.
"""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses.recipe import AdversarialRecipe, Context, Paper, features_of
from robench.defenses.recipes.divergence import boosted_margin, weighted_kl
from robench.defenses.training_data import Batch
from robench.errors import TrainingError
from robench.probes import eval_mode

_TINY = 1e-12


class AgkdBml(AdversarialRecipe):
    """Distillation of attention + 2·triplet + label-smoothed CE + MART's terms.

    For x1 with label y1 and most confusing class c, x1' is attacked towards c; x2 is a random
    sample of class c, and x2' is attacked towards y1. The teacher, trained on clean data, shows
    where to look and gives the initial weights.
    """

    name = "agkd-bml"
    paper = Paper(
        "AGKD-BML: Defense Against Adversarial Attack by Attention Guided Knowledge Distillation "
        "and Bi-directional Metric Learning (Wang et al.)",
        "https://arxiv.org/abs/2108.06017",
        "ICCV",
        2021,
    )
    needs_teacher = True

    distillation: float = Field(1.0, ge=0)
    metric: float = Field(2.0, ge=0)
    """Weight of the triplet loss (λ1)."""
    margin: float = Field(0.03, ge=0)
    feature_norm: float = Field(0.001, ge=0)
    """Weight of the mean squared features inside the triplet loss (λ2)."""
    smoothing: float = Field(0.5, ge=0, lt=1)
    """Mass that label smoothing puts on the wrong classes together."""
    beta: float = Field(6.0, ge=0)
    """Weight of MART's divergence."""

    def check(self, network: nn.Module, inputs: Tensor, num_classes: int) -> None:
        """The network must offer its features."""
        with eval_mode(network), torch.no_grad():
            features_of(network, inputs)

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``smoothed``, ``margin``, ``kl``, ``distillation``, ``triplet``, weighted."""
        if context.teacher is None:
            raise TrainingError("agkd-bml needs a teacher", hint="Give one with --teacher")
        network, teacher = context.network, context.teacher
        inputs, labels = batch.inputs, batch.labels
        with eval_mode(network), torch.no_grad():
            confusing = confusing_classes(network(inputs), labels)
        others = context.data.draw(confusing, batch.keys)
        adv_inputs = self.pgd(context, inputs, confusing, batch.keys, sign=-1)
        adv_others = self.pgd(context, others, labels, batch.keys + 1, sign=-1)

        # One pass over all three, as the reference does: they share their batch statistics.
        maps, pooled, logits = features_of(network, torch.cat((adv_inputs, inputs, adv_others)))
        adv_maps, _, adv_other_maps = maps.chunk(3)
        anchor, positive, negative = pooled.chunk(3)
        adv_logits, clean_logits, _ = logits.chunk(3)
        with torch.no_grad():
            taught, taught_others = features_of(teacher, torch.cat((inputs, others)))[0].chunk(2)
        gaze = F.l1_loss(attention_map(adv_maps), attention_map(taught))
        gaze = gaze + F.l1_loss(attention_map(adv_other_maps), attention_map(taught_others))
        size = sum(part.square().mean() for part in (anchor, positive, negative))
        pull = F.triplet_margin_with_distance_loss(
            anchor, positive, negative, distance_function=angular_distance, margin=self.margin
        )
        return {
            "smoothed": smoothed_cross_entropy(adv_logits, labels, self.smoothing),
            "margin": boosted_margin(adv_logits, labels).mean(),
            "kl": self.beta * weighted_kl(clean_logits, adv_logits, labels).mean(),
            "distillation": self.distillation * gaze,
            "triplet": self.metric * (pull + self.feature_norm * size),
        }


def confusing_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """The wrong class with the largest logit: (N, C), (N,) → (N,)."""
    return logits.scatter(1, labels[:, None], float("-inf")).argmax(dim=1)


def attention_map(maps: Tensor) -> Tensor:
    """Sum over channels, min-max to [0, 1] for each image: (N, C, h, w) → (N, h, w).

    A constant map becomes 0.
    """
    flat = maps.sum(dim=1).flatten(1)
    flat = flat - flat.amin(dim=1, keepdim=True)
    flat = flat / (flat.amax(dim=1, keepdim=True) + _TINY)
    return flat.view(len(maps), *maps.shape[2:])


def angular_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 − |cos(a, b)|: (N, D), (N, D) → (N,) in [0, 1]."""
    return 1 - F.cosine_similarity(a, b, dim=1).abs()


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, mass: float) -> Tensor:
    """Cross-entropy with ``mass`` shared equally by the wrong classes; the mean over the batch.

    Not torch's ``label_smoothing``, which shares with the true class too and so cannot give it
    less than each wrong one.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    true = log_probabilities.gather(1, labels[:, None]).squeeze(1)
    wrong = (log_probabilities.sum(dim=1) - true) / (logits.shape[1] - 1)
    return -((1 - mass) * true + mass * wrong).mean()
