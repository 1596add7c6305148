"""What a network's features make of adversarial examples."""

from robench.representations.features import penultimate_features
from robench.representations.metrics import alignment, exclusion, separation

__all__ = [
    "alignment",
    "exclusion",
    "penultimate_features",
    "separation",
]
