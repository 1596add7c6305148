"""AERP: attention rectification and preservation (Wu, Sang et al., arXiv 1811.09831).

The authors train on one-step least-likely FGSM (ε 0.15 on inputs in [−1, 1]); the default here
is PGD, which is stronger, and ``attack = "least-likely"`` is theirs.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robench.defenses.inner_maximisers import ascend, cross_entropy_of
from robench.defenses.recipe import AdversarialRecipe, Context, Paper, features_of
from robench.defenses.training_data import Batch
from robench.errors import ModelError
from robench.probes import eval_mode

_TINY = 1e-8


class Aerp(AdversarialRecipe):
    """8·L_cls + 4·L_rect + 1·L_pres.

    L_cls = CE(x, y) + CE(x', y). L_rect = −mean‖p(x) − p(hidden x)‖² − the same of x': hiding
    what was attended must matter. L_pres = mean Σ (A(x) − A(x'))²: the attack must not move the
    attention. A is made of gradients, so the loss is second-order.
    """

    name = "aerp"
    paper = Paper(
        "Attention, Please! Adversarial Defense via Attention Rectification and Preservation "
        "(Wu et al.)",
        "https://arxiv.org/abs/1811.09831",
        "ACM TOMM",
        2022,
    )

    classification: float = Field(8.0, ge=0)
    rectification: float = Field(4.0, ge=0)
    preservation: float = Field(1.0, ge=0)
    attack: Literal["pgd", "least-likely"] = "pgd"
    """Inner attack; ``least-likely`` is one step of ε towards the least likely class."""

    def check(self, network: nn.Module, inputs: Tensor, num_classes: int) -> None:
        """The network must offer its feature map, of more than one cell."""
        with eval_mode(network), torch.no_grad():
            maps, _, _ = features_of(network, inputs)
        if maps.shape[2] * maps.shape[3] < 2:
            raise ModelError(
                "the last feature map is a single cell, so attention has no shape",
                hint="Use a network with less down-sampling",
            )

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``classification``, ``rectification`` (negative), ``preservation``, weighted."""
        network, inputs, labels = context.network, batch.inputs, batch.labels
        adv_inputs = self.attacked(context, batch)
        clean_logits, clean_attention = _seen(network, inputs, labels)
        adv_logits, adv_attention = _seen(network, adv_inputs, labels)
        gap = torch.zeros((), device=inputs.device)
        for points, logits, attention in (
            (inputs, clean_logits, clean_attention),
            (adv_inputs, adv_logits, adv_attention),
        ):
            hidden = points * ~attended(attention).unsqueeze(1)
            gap = gap + probability_gap(logits, network(hidden)).mean()
        moved = (clean_attention - adv_attention).square().sum(dim=(1, 2)).mean()
        supervised = F.cross_entropy(clean_logits, labels) + F.cross_entropy(adv_logits, labels)
        return {
            "classification": self.classification * supervised,
            "rectification": -self.rectification * gap,
            "preservation": self.preservation * moved,
        }

    def attacked(self, context: Context, batch: Batch) -> Tensor:
        """The batch's inputs under the inner attack, (N, C, H, W) in the ball and the box."""
        network, inputs = context.network, batch.inputs
        if self.attack == "pgd":
            return self.pgd(context, inputs, batch.labels, batch.keys)
        with eval_mode(network):
            with torch.no_grad():
                unlikely = network(inputs).argmin(dim=1)
            towards = cross_entropy_of(network, unlikely, sign=-1)
            return ascend(towards, inputs, inputs, context.threat_model, steps=1, step_size=1.0)


def _seen(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and attention at the inputs' size, from one forward pass."""
    maps, _, logits = features_of(network, inputs)
    attention = class_attention(maps, logits, labels)
    return logits, upsampled(attention, inputs.shape[2:])


def class_attention(maps: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The authors' Grad-CAM of the true class, before its softmax.

    Channel weights are the spatial means of the gradient, divided by the gradient's RMS; the map
    is the channels' weighted sum, without a ReLU.

    Args:
        maps: feature map (N, C, h, w) that ``logits`` were computed from.
        logits: (N, num_classes).
        labels: (N,).

    Returns:
        (N, h, w), with a graph, so that a loss on it trains the network.
    """
    own = logits.gather(1, labels[:, None]).sum()
    (gradient,) = torch.autograd.grad(own, maps, create_graph=True)
    # Inside the root, because the root's slope at an all-zero gradient is infinite.
    rms = (gradient.square().mean(dim=(1, 2, 3), keepdim=True) + _TINY**2).sqrt()
    weights = (gradient / rms).mean(dim=(2, 3), keepdim=True)
    return (weights * maps).sum(dim=1)


def upsampled(attention: Tensor, size: torch.Size) -> Tensor:
    """Bilinear to ``size``, then a softmax over all cells: (N, h, w) → (N, H, W), summing to 1."""
    larger = attention.unsqueeze(1)
    if larger.shape[2:] != size:
        larger = F.interpolate(larger, size=tuple(size), mode="bilinear", align_corners=False)
    return larger.flatten(1).softmax(dim=1).view(len(attention), *size)


def attended(attention: Tensor) -> Tensor:
    """Cells at or above the map's own mean: (N, H, W) → bool (N, H, W)."""
    return attention.detach() >= attention.detach().mean(dim=(1, 2), keepdim=True)


def probability_gap(logits: Tensor, other: Tensor) -> Tensor:
    """‖p − q‖² of each sample's two predictions: (N, C), (N, C) → (N,) in [0, 2]."""
    return (logits.softmax(dim=1) - other.softmax(dim=1)).square().sum(dim=1)
