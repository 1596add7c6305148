"""PGD adversarial training (Madry et al., ICLR 2018, arXiv 1706.06083)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from robench.defenses.inner_maximisers import cross_entropy_of, uniform_start
from robench.defenses.recipe import AdversarialRecipe, Context, Paper
from robench.defenses.training_data import Batch

__all__ = ["PgdAt"]


class PgdAt(AdversarialRecipe):
    """CE(x', y), x' from 10-step PGD with steps of ε/4 (their equation 2.1)."""

    name = "pgd-at"
    paper = Paper(
        "Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al.)",
        "https://arxiv.org/abs/1706.06083",
        "ICLR",
        2018,
    )

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``adversarial``: cross-entropy on the PGD inputs."""
        adv_inputs = self.maximise(
            context,
            cross_entropy_of(context.network, batch.labels),
            batch.inputs,
            uniform_start(batch.inputs, context.threat_model, batch.keys),
        )
        return {"adversarial": F.cross_entropy(context.network(adv_inputs), batch.labels)}
