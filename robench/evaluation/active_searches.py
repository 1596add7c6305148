"""The searches that are under way: one dataclass of tensors, a row for each slot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic

import torch
from torch import Tensor

from robench.attacks.base import StateT
from robench.geometry import with_rows


@dataclass(frozen=True)
class Active(Generic[StateT]):
    """Searches that are under way. The first axis of every tensor is the slot."""

    state: StateT
    sample: Tensor
    """int64 (B,)"""
    search: Tensor
    """int64 (B,): which of the sample's searches, in the order that they are made"""
    best: Tensor
    """(B, C, H, W): the point of the smallest margin so far"""
    best_margin: Tensor
    checked_margin: Tensor
    """(B,): the smallest margin whose point the original model has judged"""

    def __len__(self) -> int:
        return len(self.sample)

    def with_best(self) -> Active[StateT]:
        """The last points remembered where they are the best so far."""
        better = self.state.margin < self.best_margin
        if not bool(better.any()):
            return self
        best = with_rows(self.best, better, self.state.candidate)
        margin = torch.where(better, self.state.margin, self.best_margin)
        return replace(self, best=best, best_margin=margin)
