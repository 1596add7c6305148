"""Training recipes over one training loop.

``train(resolve("trades", "digits"))`` writes a model's folder, ``card.toml`` and
``weights.safetensors``, with everything needed to train it again.
"""

from typing import TYPE_CHECKING

from robench.defenses.catalogue import RECIPES as RECIPES
from robench.registry import lazily

if TYPE_CHECKING:
    from robench.defenses.job import TrainingJob as TrainingJob
    from robench.defenses.job import resolve as resolve
    from robench.defenses.recipe import AdversarialRecipe as AdversarialRecipe
    from robench.defenses.recipe import Context as Context
    from robench.defenses.recipe import Paper as Paper
    from robench.defenses.recipe import Recipe as Recipe
    from robench.defenses.settings import TrainingSettings as TrainingSettings
    from robench.defenses.training import train as train
    from robench.defenses.training import validate as validate
    from robench.defenses.training_data import Batch as Batch
    from robench.defenses.training_data import TrainingSplits as TrainingSplits

_HOMES = {
    "catalogue": ("RECIPES",),
    "job": ("TrainingJob", "resolve"),
    "recipe": ("AdversarialRecipe", "Context", "Paper", "Recipe"),
    "settings": ("TrainingSettings",),
    "training": ("train", "validate"),
    "training_data": ("Batch", "TrainingSplits"),
}
__all__ = [name for names in _HOMES.values() for name in names]

# torch takes seconds to import; the command line lists recipes without it.
__getattr__ = lazily(__name__, _HOMES)
