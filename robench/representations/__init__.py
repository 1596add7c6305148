"""What a network's features make of adversarial examples."""

from __future__ import annotations

from robench.representations.features import penultimate_features
from robench.representations.metrics import alignment, exclusion, separation
from robench.representations.summary import representation_values

__all__ = [
    "alignment",
    "exclusion",
    "penultimate_features",
    "representation_values",
    "separation",
]
