"""ANCRA: asymmetric negative contrast and reverse attention (Zhou et al., arXiv 2310.03358).

Reference: changzhang777/ANCRA. Its robustness is suspect: in evaluation the mask is chosen by a
hard argmax, through which no gradient flows, so gradient attacks on the final logits see a poor
guide to where the prediction changes.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robench import seeding
from robench.defenses.inner_maximisers import gaussian_start
from robench.defenses.recipe import AdversarialRecipe, Context, Paper
from robench.defenses.recipes.divergence import PAPER_STEP, mart_terms, trades_terms
from robench.defenses.training_data import Batch
from robench.errors import ModelError, TrainingError
from robench.probes import eval_mode
from robench.records import ForwardSpec

_NEGATIVE = seeding.tag("negative class")


class Ancra(AdversarialRecipe):
    """L(final) + mean L(aux) + 3·[ANC(final) + mean ANC(aux)], L of PGD, TRADES or MART form.

    ``pgd``: CE(x'). ``trades``: CE(x) + 6·KL(x, x'). ``mart``: BCE(x') + 6·weighted KL. The
    attack maximises CE(final) + 2·mean CE(aux) whatever the form.
    """

    name = "ancra"
    paper = Paper(
        "Enhancing Robust Representation in Adversarial Training: Alignment and Exclusion "
        "Criteria (Zhou et al.)",
        "https://arxiv.org/abs/2310.03358",
        "arXiv",
        2023,
    )
    notes = (
        "Suspect: the evaluation-time mask is chosen by a hard argmax, which hides the gradient. "
        "Read its AutoAttack number beside the attack on its auxiliary logits."
    )

    form: Literal["pgd", "trades", "mart"] = "trades"
    beta: float = Field(6.0, ge=0)
    """Weight of the divergence in the TRADES and MART forms."""
    contrast: float = Field(3.0, ge=0)
    """Weight of the asymmetric negative contrast (ζ)."""
    asymmetry: float = Field(1.0, ge=0, le=1)
    """α: share of the contrast that moves the negative only; 1 detaches the anchor."""
    auxiliary: float = Field(1.0, ge=0)
    """Weight of the auxiliary logits in the loss."""
    auxiliary_attack: float = Field(2.0, ge=0)
    """Weight of the auxiliary logits in the attack's objective."""
    attack_step_size: float = Field(PAPER_STEP, gt=0)

    def check(self, network: nn.Module, inputs: Tensor, num_classes: int) -> None:
        """The network must have auxiliary logits, and there must be other classes."""
        if num_classes < 2:
            raise TrainingError("a negative needs another class, and there is one only")
        labels = torch.zeros(len(inputs), dtype=torch.int64)
        try:
            with eval_mode(network), torch.no_grad():
                final, extra = network(inputs, labels, _eval=False)
            if not (isinstance(final, Tensor) and isinstance(extra, list) and extra):
                raise TypeError("no auxiliary logits")
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"{type(network).__name__} has no reverse attention",
                hint="Use an architecture with it, "
                "such as digits_resnet_ra, resnet18_ra or wide_resnet_ra",
            ) from error

    def forward_spec(self, network: nn.Module, inputs: Tensor) -> ForwardSpec:
        """Final logits by default; each masked block's auxiliary logits by name."""
        with eval_mode(network), torch.no_grad():
            _, auxiliary = network(inputs, None, _eval=True)
        return ForwardSpec(
            outputs={f"auxiliary_{i}": (1, i) for i in range(len(auxiliary))},
            outputs_arguments={"_eval": True},
        )

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """The form's terms, with the auxiliary logits' share in each; and ``contrast``."""
        network, inputs, labels = context.network, batch.inputs, batch.labels
        wrong = other_classes(labels, batch.keys, context.num_classes)
        negatives = context.data.draw(wrong, batch.keys)
        adv_inputs = self.attacked(context, inputs, labels, batch.keys, direction=1.0)
        # Towards the anchor's label.
        adv_negatives = self.attacked(context, negatives, labels, batch.keys + 1, direction=-1.0)
        clean = _heads(network, inputs, labels)
        adv = _heads(network, adv_inputs, labels)
        negative = _heads(network, adv_negatives, wrong)

        by_head = [
            self._form(clean_logits, adv_logits, labels)
            for clean_logits, adv_logits in zip(clean, adv, strict=True)
        ]
        terms = {name: self._over_heads([head[name] for head in by_head]) for name in by_head[0]}
        contrasts = [
            negative_contrast(anchor.softmax(1), other.softmax(1), self.asymmetry).mean()
            for anchor, other in zip(clean, negative, strict=True)
        ]
        terms["contrast"] = self.contrast * self._over_heads(contrasts)
        return terms

    def _form(self, clean: Tensor, adv: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One head's terms."""
        if self.form == "pgd":
            return {"adversarial": F.cross_entropy(adv, labels)}
        terms = trades_terms if self.form == "trades" else mart_terms
        return terms(clean, adv, labels, self.beta)

    def _over_heads(self, terms: list[Tensor]) -> Tensor:
        """The final head's term plus the weighted mean of the auxiliary heads'."""
        return terms[0] + self.auxiliary * torch.stack(terms[1:]).mean()

    def attacked(
        self, context: Context, inputs: Tensor, labels: Tensor, keys: Tensor, *, direction: float
    ) -> Tensor:
        """PGD on CE(final) + 2·mean CE(aux), away from ``labels`` (1) or towards them (−1)."""
        network = context.network

        def objective(points: Tensor) -> Tensor:
            final, auxiliary = network(points, None, _eval=True)
            losses = [F.cross_entropy(head, labels, reduction="none") for head in auxiliary]
            own = F.cross_entropy(final, labels, reduction="none")
            return direction * (own + self.auxiliary_attack * torch.stack(losses).mean(dim=0))

        return self.maximise(context, objective, inputs, gaussian_start(inputs, keys))


def other_classes(labels: Tensor, keys: Tensor, num_classes: int) -> Tensor:
    """A uniformly random other class for each sample: (N,), (N,) → (N,)."""
    offsets = seeding.integers(seeding.derive(keys, _NEGATIVE), num_classes - 1, (1,)).flatten()
    return (labels + 1 + offsets) % num_classes


def negative_contrast(anchor: Tensor, negative: Tensor, asymmetry: float) -> Tensor:
    """sqrt(p_anchor · p_negative) where both predict the same class, else 0.

    Args:
        anchor: probabilities (N, C) of the natural anchors.
        negative: probabilities (N, C) of the attacked negatives.
        asymmetry: α; the share with the anchor detached. The rest detaches the negative.

    Returns:
        (N,), in [0, 1].
    """
    (own, own_class), (other, other_class) = anchor.max(dim=1), negative.max(dim=1)
    moved = asymmetry * (own.detach() * other).sqrt()
    if asymmetry < 1:
        moved = moved + (1 - asymmetry) * (own * other.detach()).sqrt()
    return torch.where(own_class == other_class, moved, torch.zeros_like(moved))


def _heads(network: nn.Module, inputs: Tensor, labels: Tensor) -> list[Tensor]:
    """Final logits, then the auxiliary ones, masked by the labels' rows."""
    final, auxiliary = network(inputs, labels, _eval=False)
    return [final, *auxiliary]
