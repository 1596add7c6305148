"""Phases of a cascade: one stage on some of the samples, and what is known of it half way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robench.evaluation.samples import Found
from robench.records import StageResult

__all__ = ["Phase", "Tally"]


@dataclass(frozen=True)
class Phase:
    """One stage on some of the samples."""

    stage: int
    who: Literal["all", "audited", "others"]
    again: bool = False
    """In float32, the searches that came near the boundary"""


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass
class Tally:
    """What a phase has come to so far. An interruption must not lose any of it."""

    due: Tensor = field(default_factory=_none)
    """int64: rows that the phase runs on"""
    done: Tensor = field(default_factory=_none)
    """int64: those that are finished"""
    broken: int = 0
    errored: int = 0
    forwards: int = 0
    backwards: int = 0
    zero_gradients: int = 0
    nonfinite_gradients: int = 0
    seconds: float = 0.0

    def add(self, rows: Tensor, found: Found) -> None:
        """Count what was found for ``rows``."""
        self.done = torch.cat((self.done, rows))
        self.broken += int(found.broken.sum())
        self.errored += len(found.errors)
        self.forwards += int(found.forwards.sum())
        self.backwards += int(found.backwards.sum())
        self.zero_gradients += found.zero_gradients
        self.nonfinite_gradients += found.nonfinite_gradients

    def todo(self, begun: Tensor) -> Tensor:
        """Rows that are neither finished nor among those that are being searched."""
        return self.due[~torch.isin(self.due, torch.cat((self.done, begun)))]

    def result(self, name: str, search: str | None, skipped: str | None) -> StageResult:
        """For the record."""
        return StageResult(
            name=name,
            search=search,
            attempted=0 if skipped else len(self.due),
            broken=self.broken,
            errored=self.errored,
            forwards=self.forwards,
            backwards=self.backwards,
            seconds=self.seconds,
            skipped=skipped,
        )
