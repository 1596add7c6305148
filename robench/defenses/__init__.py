"""Training recipes: one small file each, over one training loop.

``train(resolve("trades", "digits"))`` writes a model's folder, ``card.toml`` and
``weights.safetensors``, with everything needed to train it again.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from robench.defenses.catalogue import RECIPES

if TYPE_CHECKING:
    from robench.defenses.job import TrainingJob, resolve
    from robench.defenses.recipe import AdversarialRecipe, Context, Paper, Recipe
    from robench.defenses.settings import TrainingSettings
    from robench.defenses.training import train, validate
    from robench.defenses.training_data import Batch, TrainingSplits

__all__ = [
    "RECIPES",
    "AdversarialRecipe",
    "Batch",
    "Context",
    "Paper",
    "Recipe",
    "TrainingJob",
    "TrainingSettings",
    "TrainingSplits",
    "resolve",
    "train",
    "validate",
]

_HOMES = {
    "job": ("TrainingJob", "resolve"),
    "recipe": ("AdversarialRecipe", "Context", "Paper", "Recipe"),
    "settings": ("TrainingSettings",),
    "training": ("train", "validate"),
    "training_data": ("Batch", "TrainingSplits"),
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; the command line lists recipes without it.
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
