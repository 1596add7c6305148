"""All attention metrics of a batch, under the names of the records' columns."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from robench.attention.masks import is_empty
from robench.attention.metrics import (
    attention_coverage,
    attention_deviation,
    attention_divergence,
    attention_entropy,
    attention_fragments,
    attention_scatter,
    attention_shift,
)

__all__ = ["attention_values"]

_OF_A_PAIR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "attention_deviation": attention_deviation,
    "attention_shift": attention_shift,
    "attention_divergence": attention_divergence,
}

_OF_A_MAP: dict[str, Callable[[Tensor], Tensor]] = {
    "attention_scatter": attention_scatter,
    "attention_entropy": attention_entropy,
    "attention_fragments": attention_fragments,
}


def attention_values(
    clean_maps: Tensor, adv_maps: Tensor, masks: Tensor | None = None
) -> dict[str, Tensor]:
    """Every attention metric of each sample.

    Args:
        clean_maps: (N, h, w), 0 or larger, of the clean inputs.
        adv_maps: (N, h, w), of the adversarial inputs, for the same class and layer.
        masks: (N, h, w) bool, the object's cells; without them there is no coverage.

    Returns:
        Column name → (N,). Names, directions and ranges are in
        :data:`robench.metric_catalogue.ATTENTION_METRICS`. A value that is undefined for a sample
        is NaN; ``attention_empty`` is 1 where the clean or the adversarial map is empty, else 0.

    Raises:
        UsageError: malformed maps or masks, or shapes that differ.
    """
    values = {name: measure(clean_maps, adv_maps) for name, measure in _OF_A_PAIR.items()}
    for name, measure in _OF_A_MAP.items():
        values |= _with_increase(name, measure(clean_maps), measure(adv_maps))
    if masks is not None:
        values |= _with_increase(
            "attention_coverage",
            attention_coverage(clean_maps, masks),
            attention_coverage(adv_maps, masks),
        )
    empty = is_empty(clean_maps) | is_empty(adv_maps)
    return values | {"attention_empty": empty.to(values["attention_deviation"].dtype)}


def _with_increase(name: str, clean: Tensor, adv: Tensor) -> dict[str, Tensor]:
    return {f"{name}_clean": clean, f"{name}_adv": adv, f"{name}_increase": adv - clean}
