"""All representation metrics of a set of samples, under the names of the records' columns."""

from __future__ import annotations

from torch import Tensor

from robench.representations.metrics import alignment, exclusion, separation

__all__ = ["representation_values"]


def representation_values(
    features: Tensor, adv_features: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Every representation metric of each sample.

    Exclusion and separation compare a sample with all others: give the whole set at once,
    restricted to the samples that count (those classified correctly).

    Args:
        features: (N, D), of the clean inputs.
        adv_features: (N, D), of the adversarial inputs.
        labels: (N,) true classes.

    Returns:
        Column name → (N,), NaN where undefined. Names, directions and ranges are in
        :data:`robench.metric_catalogue.REPRESENTATION_METRICS`; the mean of ``separation`` is the
        AUC.

    Raises:
        UsageError: malformed features or labels.
    """
    return {
        "alignment": alignment(features, adv_features),
        "exclusion": exclusion(features, adv_features, labels),
        "separation": separation(features, adv_features, labels),
    }
