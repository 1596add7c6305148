"""AGKD-BML: attention-guided distillation and bidirectional metric learning.

Wang et al., ICCV 2021, arXiv 2108.06017; reference: hongw579/AGKD-BML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses.inner_maximisers import ascend, in_eval_mode, uniform_start
from robench.defenses.mart import boosted_margin, weighted_kl
from robench.defenses.recipe import AdversarialRecipe, Batch, Context, features_of
from robench.errors import TrainingError

__all__ = [
    "AgkdBml",
    "angular_distance",
    "attention_map",
    "confusing_classes",
    "smoothed_cross_entropy",
    "triplet",
]

_TINY = 1e-12


class AgkdBml(AdversarialRecipe):
    """Distillation of attention + 2·triplet + label-smoothed CE + MART's terms.

    For x1 with label y1 and most confusing class c, x1' is attacked towards c; x2 is a random
    sample of class c, and x2' is attacked towards y1. The teacher, trained on clean data, shows
    where to look and gives the initial weights.
    """

    name: ClassVar[str] = "agkd-bml"
    paper: ClassVar[str | None] = (
        "AGKD-BML: Defense Against Adversarial Attack by Attention Guided Knowledge Distillation "
        "and Bi-directional Metric Learning (Wang et al.)"
    )
    link: ClassVar[str | None] = "https://arxiv.org/abs/2108.06017"
    venue: ClassVar[str | None] = "ICCV"
    year: ClassVar[int | None] = 2021
    needs_teacher: ClassVar[bool] = True
    suggested: ClassVar[Mapping[str, Any]] = {}

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
        """The network must offer its features.

        Raises:
            ModelError: it does not.
        """
        with in_eval_mode(network), torch.no_grad():
            features_of(network, inputs)

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``smoothed``, ``margin``, ``kl``, ``distillation``, ``triplet``, weighted."""
        if context.teacher is None:
            raise TrainingError("agkd-bml needs a teacher", hint="Give one with --teacher")
        network, teacher = context.network, context.teacher
        inputs, labels = batch.inputs, batch.labels
        with in_eval_mode(network), torch.no_grad():
            confusing = confusing_classes(network(inputs), labels)
        others = context.data.draw(confusing, batch.keys)
        adv_inputs = self._towards(context, inputs, confusing, batch.keys)
        adv_others = self._towards(context, others, labels, batch.keys + 1)

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
        pull = triplet(anchor, positive, negative, self.margin).mean() + self.feature_norm * size
        return {
            "smoothed": smoothed_cross_entropy(adv_logits, labels, self.smoothing),
            "margin": boosted_margin(adv_logits, labels).mean(),
            "kl": self.beta * weighted_kl(clean_logits, adv_logits, labels).mean(),
            "distillation": self.distillation * gaze,
            "triplet": self.metric * pull,
        }

    def _towards(self, context: Context, inputs: Tensor, targets: Tensor, keys: Tensor) -> Tensor:
        network = context.network
        with in_eval_mode(network):
            return ascend(
                lambda points: -F.cross_entropy(network(points), targets, reduction="none"),
                inputs,
                uniform_start(inputs, context.threat_model, keys),
                context.threat_model,
                steps=self.attack_steps,
                step_size=self.attack_step_size,
            )


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


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """max(0, margin + D(anchor, positive) − D(anchor, negative)) of each sample: (N,)."""
    difference = angular_distance(anchor, positive) - angular_distance(anchor, negative)
    return (margin + difference).clamp_min(0)


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, mass: float) -> Tensor:
    """Cross-entropy with ``mass`` shared equally by the wrong classes; the mean over the batch."""
    log_probabilities = F.log_softmax(logits, dim=1)
    true = log_probabilities.gather(1, labels[:, None]).squeeze(1)
    wrong = (log_probabilities.sum(dim=1) - true) / (logits.shape[1] - 1)
    return -((1 - mass) * true + mass * wrong).mean()
