"""Standard training: no defense, the leaderboard's floor."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from robench.defenses.recipe import Context, Recipe
from robench.defenses.training_data import Batch

__all__ = ["Standard"]


class Standard(Recipe):
    """CE(x, y)."""

    name = "standard"
    selection = "clean_acc"

    def terms(self, context: Context, batch: Batch) -> dict[str, Tensor]:
        """``clean``: cross-entropy on the clean inputs."""
        return {"clean": F.cross_entropy(context.network(batch.inputs), batch.labels)}
