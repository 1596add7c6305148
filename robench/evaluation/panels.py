"""A few samples kept whole: which ones, and everything that a picture of them needs."""

from __future__ import annotations

import torch
from torch import Tensor

from robench.evaluation.adversarial_inputs import ReadInputs
from robench.evaluation.measures import Measures
from robench.results import SamplePanel

__all__ = ["half_broken", "panel_of"]

_PICTURE_CHANNELS = (1, 3)


def half_broken(broken: Tensor, survived: Tensor, count: int) -> Tensor:
    """Positions of ``count`` samples, half of them broken; fewer of a kind make room for the other.

    Args:
        broken: bool (m,).
        survived: bool (m,).
        count: how many at most, 0 or more.

    Returns:
        int64 (k,), the broken ones first, each kind in order.

    >>> half_broken(torch.tensor([0, 1, 1, 0]).bool(), torch.tensor([1, 0, 0, 0]).bool(), 4)
    tensor([1, 2, 0])
    """
    fallen = broken.nonzero().squeeze(1)
    standing = survived.nonzero().squeeze(1)
    half = min(max(count // 2, count - len(standing)), len(fallen))
    return torch.cat((fallen[:half], standing[: count - half]))


def panel_of(
    measures: Measures,
    positions: Tensor,
    adv_inputs: ReadInputs,
    clean_predictions: Tensor,
    adv_predictions: Tensor,
) -> SamplePanel | None:
    """The samples at some positions with their maps.

    Args:
        measures: of the model and data set; its rows are what positions count.
        positions: int64 (k,).
        adv_inputs: (m, C, H, W) in [0, 1] on the CPU, in the order of the rows.
        clean_predictions: int64 (m,), -1 where unknown.
        adv_predictions: int64 (m,), -1 where unknown.

    Returns:
        None without samples, or where the inputs are no pictures (channels other than 1 or 3).
    """
    data = measures.dataset
    if len(positions) == 0 or data.input_shape[0] not in _PICTURE_CHANNELS:
        return None
    rows = measures.rows[positions]
    inputs, labels = data.batch(rows), data.labels[rows]
    adversarial = adv_inputs[positions]
    maps = measures.maps(inputs, labels)
    adv_maps = measures.maps(adversarial, labels)
    none = torch.full((len(positions), 1, 1), torch.nan)
    return SamplePanel(
        sample_ids=tuple(data.sample_ids[row] for row in rows.tolist()),
        clean=inputs.movedim(1, -1).numpy(),
        adversarial=adversarial.movedim(1, -1).numpy(),
        clean_maps=(none if maps is None else maps).numpy(),
        adv_maps=(none if adv_maps is None else adv_maps).numpy(),
        labels=labels.numpy(),
        clean_predictions=clean_predictions[positions].numpy(),
        adv_predictions=adv_predictions[positions].numpy(),
    )
