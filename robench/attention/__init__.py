"""What a network looks at: maps, and how an attack changes them."""

from __future__ import annotations

from robench.attention.catalogue import ATTENTION_METHODS, AttentionMethod
from robench.attention.feature_maps import find_spatial_layer
from robench.attention.feature_sum import feature_sum, feature_sum_map
from robench.attention.grad_cam import grad_cam, grad_cam_and_logits
from robench.attention.maps import AttentionExtractor
from robench.attention.masks import downsample_masks, is_empty, largest_cells, top_mask
from robench.attention.metrics import (
    attention_coverage,
    attention_deviation,
    attention_divergence,
    attention_empty,
    attention_entropy,
    attention_fragments,
    attention_scatter,
    attention_shift,
    connected_parts,
)
from robench.attention.rollout import rollout, rollout_tokens, token_grid

__all__ = [
    "ATTENTION_METHODS",
    "AttentionExtractor",
    "AttentionMethod",
    "attention_coverage",
    "attention_deviation",
    "attention_divergence",
    "attention_empty",
    "attention_entropy",
    "attention_fragments",
    "attention_scatter",
    "attention_shift",
    "connected_parts",
    "downsample_masks",
    "feature_sum",
    "feature_sum_map",
    "find_spatial_layer",
    "grad_cam",
    "grad_cam_and_logits",
    "is_empty",
    "largest_cells",
    "rollout",
    "rollout_tokens",
    "token_grid",
    "top_mask",
]
