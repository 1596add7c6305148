"""Cross-entropy alone: on clean inputs, the leaderboard's floor, or on PGD inputs.

PGD adversarial training: Madry et al., ICLR 2018, arXiv 1706.06083.
"""

from torch import Tensor
from torch.nn import functional as F

from robench.defenses.recipe import AdversarialRecipe, Context, Paper, Recipe
from robench.defenses.training_data import Batch


class Standard(Recipe):
    """CE(x, y): no defense."""

    name = "standard"
    selection = "clean_acc"

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``clean``: cross-entropy on the clean inputs."""
        return {"clean": F.cross_entropy(context.network(batch.inputs), batch.labels)}


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
        adv_inputs = self.pgd(context, batch.inputs, batch.labels, batch.keys)
        return {"adversarial": F.cross_entropy(context.network(adv_inputs), batch.labels)}
