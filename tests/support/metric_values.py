"""What the catalogue's metrics make of maps, or of features."""

from __future__ import annotations

from torch import Tensor

from robench.metric_catalogue import METRICS, measure

__all__ = ["attention_values", "columns_on", "representation_values"]


def attention_values(
    maps: Tensor, adv_maps: Tensor, masks: Tensor | None = None
) -> dict[str, Tensor]:
    return measure(maps=maps, adv_maps=adv_maps, masks=masks)


def representation_values(
    features: Tensor, adv_features: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    return measure(features=features, adv_features=adv_features, labels=labels)


def columns_on(*data: str) -> set[str]:
    """Columns of the metrics that are on any of these."""
    chosen = [item for item in METRICS.metrics.values() if not item.needs.isdisjoint(data)]
    return {column.name for item in chosen for column in item.columns()}
