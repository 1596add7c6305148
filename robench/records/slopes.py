"""How a model's outputs rise at a few samples: by these a record is known to be the model's."""

from __future__ import annotations

from robench.records.base import Frozen

Figures = tuple[float | None, ...]
"""One for each sample; None: the model failed there"""


class Slopes(Frozen):
    """What a model gave for up to 64 of a record's samples, and for inputs beside them.

    Beside a sample is the input with 0.03 added to or taken from each value, by signs that belong to
    the sample. At the sample the slope is that of the margin, beside it that of the cross-entropy of the
    logits in units of their range. Both are along a direction of signs that belong to the sample.
    """

    samples: tuple[str, ...]
    """Their ids, in the data set's order"""
    margin: Figures
    """Logit of the label minus the largest other"""
    slope: Figures
    """Along the direction, signed"""
    size: Figures
    """L2 norm of the gradient"""
    beside_margin: Figures
    beside_slope: Figures
    beside_size: Figures

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The names of the figures, in order."""
        return tuple(name for name in cls.model_fields if name != "samples")
