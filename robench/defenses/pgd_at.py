"""PGD adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from robench.defenses.inner_maximisers import pgd
from robench.defenses.recipe import AdversarialRecipe, Batch, Context

__all__ = ["PgdAt"]


class PgdAt(AdversarialRecipe):
    """CE(x', y), x' from 10-step PGD with steps of ε/4 (their equation 2.1)."""

    name: ClassVar[str] = "pgd-at"
    paper: ClassVar[str | None] = (
        "Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al.)"
    )
    link: ClassVar[str | None] = "https://arxiv.org/abs/1706.06083"
    venue: ClassVar[str | None] = "ICLR"
    year: ClassVar[int | None] = 2018

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``adversarial``: cross-entropy on the PGD inputs."""
        adv_inputs = pgd(
            context.network,
            batch.inputs,
            batch.labels,
            context.threat_model,
            batch.keys,
            steps=self.attack_steps,
            step_size=self.attack_step_size,
        )
        return {"adversarial": F.cross_entropy(context.network(adv_inputs), batch.labels)}
