"""Training recipes: one small file each, over one trainer.

``train`` writes a model's folder, ``card.toml`` and ``weights.safetensors``, with everything
needed to train it again.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from robench.defenses.catalogue import RECIPES

if TYPE_CHECKING:
    from robench.defenses.recipe import Batch, Context, Recipe
    from robench.defenses.settings import TrainingSettings
    from robench.defenses.training import train

__all__ = ["RECIPES", "Batch", "Context", "Recipe", "TrainingSettings", "train"]

_HOMES = {
    "Batch": "robench.defenses.recipe",
    "Context": "robench.defenses.recipe",
    "Recipe": "robench.defenses.recipe",
    "TrainingSettings": "robench.defenses.settings",
    "train": "robench.defenses.training",
}


def __getattr__(name: str) -> Any:
    # torch takes seconds to import; the command line lists recipes without it.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
