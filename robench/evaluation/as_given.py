"""A model that remembers or counts, asked every time as it was given.

A detector of attacks that remembers queries, or a network that changes after so many calls, is no
other network to whoever holds a copy of it: he searches on one copy, and shows an input to another
that was asked nothing yet. So all passes of such a model, a search's and a verdict's, begin with what
its modules kept when it was given. What it keeps outside its modules is not seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor

from robench.models.wrapper import RobenchModel
from robench.probes import FirstState
from robench.records import Flag

_COUNTING = {"history_dependent", "raises"}
"""The doctor's names for models that depend on what they were asked before."""


class AsGiven(RobenchModel):
    """A model whose passes leave nothing behind."""

    first: FirstState

    def forward(self, inputs: Tensor) -> Tensor:
        """As the model that was given."""
        try:
            return super().forward(inputs)
        finally:
            self.first.restore(self.network)


def as_given(model: RobenchModel, first: FirstState | None, flags: Iterable[str]) -> RobenchModel:
    """The same network, sharing every parameter, asked as it was at first; the model itself where no
    flag of the doctor's says that it remembers or counts, or where that is not known."""
    if first is None or _COUNTING.isdisjoint(flags):
        return model
    other = copy.copy(model)
    other.__class__, other.first = AsGiven, first
    first.restore(model.network)
    return other


def as_given_flag() -> Flag:
    """How a record says that its passes are of this kind."""
    return Flag(
        name="asked_as_given",
        severity="note",
        evidence="every pass begins with what the model's modules kept when it was given",
    )
