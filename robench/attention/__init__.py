"""What a network looks at: maps, and how an attack changes them (``metrics``)."""

from robench.attention.catalogue import (
    ATTENTION_METHODS,
    AttentionExtractor,
    AttentionMethod,
    attention_maps,
)
from robench.attention.feature_sum import feature_sum, feature_sum_map
from robench.attention.grad_cam import grad_cam
from robench.attention.rollout import rollout

__all__ = [
    "ATTENTION_METHODS",
    "AttentionExtractor",
    "AttentionMethod",
    "attention_maps",
    "feature_sum",
    "feature_sum_map",
    "grad_cam",
    "rollout",
]
