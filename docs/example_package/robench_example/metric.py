"""How much of the attention is on one cell."""

from __future__ import annotations

from torch import Tensor

from robench.metric_catalogue import Metric


def attention_peak(maps: Tensor) -> Tensor:
    """The largest cell's share of the map: (N, h, w) → (N,) in [0, 1], NaN where it is all zero."""
    return maps.amax(dim=(1, 2)) / maps.sum(dim=(1, 2))


ATTENTION_PEAK = Metric(
    name="attention_peak",
    unit="of the map",
    meaning="share of the most attended cell",
    direction="higher",
    bounds=(0.0, 1.0),
    compute=attention_peak,
    on=("map",),
)
