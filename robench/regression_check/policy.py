"""What the gate tolerates, as a small TOML file kept beside one's code."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import Field, field_validator

from robench.errors import UsageError
from robench.files import read_text
from robench.records import parse
from robench.records.base import Answer, Frozen, Real

_POINTS = 100
"""The largest loss that an accuracy can have"""
_FINEST = 1e-6
"""The smallest margin, and the smallest level: beyond it numbers of samples leave all range."""


class Criterion(Frozen):
    """What is tolerated of one quantity."""

    margin: Real = Field(ge=_FINEST)
    """The largest tolerable loss: percentage points for accuracies, else the metric's unit."""
    enabled: Answer = True
    required: Answer = True
    """Whether lacking figures leave the gate undecided; otherwise the criterion is skipped."""


class Policy(Frozen):
    """What the gate demands; a TOML file with exactly these names."""

    alpha: Real = Field(0.05, ge=_FINEST, lt=0.5)
    """Level of each answer, one-sided."""
    power: Real = Field(0.8, gt=0, lt=1)
    """The power for which the needed n is computed."""
    robust_acc: Criterion = Criterion(margin=1.0)
    clean_acc: Criterion = Criterion(margin=2.0)
    worst_class_robust_acc: Criterion = Criterion(margin=10.0)
    """Wide, as a class has only a part of the samples."""
    corruptions_acc: Criterion = Criterion(margin=1.0)
    """Of corruptions, which are judged by this and the clean accuracy alone; attacks by the others."""
    attention_deviation: Criterion = Criterion(margin=0.05, required=False)

    @field_validator("robust_acc", "clean_acc", "worst_class_robust_acc", "corruptions_acc")
    @classmethod
    def _in_points(cls, criterion: Criterion) -> Criterion:
        if criterion.margin > _POINTS:
            raise ValueError(f"a margin of {criterion.margin:g} points is above {_POINTS}")
        return criterion

    @classmethod
    def load(cls, path: str | Path) -> Policy:
        """Read a policy file.

        Raises:
            UsageError: it is missing, no TOML, or says something a policy does not have.
        """
        try:
            text = read_text(Path(path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot read the policy: {reason}", where=path) from error
        try:
            content = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the policy is no TOML: {error}", where=path) from error
        return parse(cls, content, UsageError, where=path)

    def with_margin(self, margin: float) -> Policy:
        """The same with another margin of robust accuracy, and of that under corruption, in points.

        Raises:
            UsageError: it is not from 1e-6 to 100.
        """
        if not _FINEST <= margin <= _POINTS:
            raise UsageError(
                f"a margin of {margin} points is not from {_FINEST:g} to {_POINTS}",
                hint="Write --margin 1.0",
            )
        names = ("robust_acc", "corruptions_acc")
        changed = {n: getattr(self, n).model_copy(update={"margin": margin}) for n in names}
        return self.model_copy(update=changed)

    @property
    def criteria(self) -> dict[str, Criterion]:
        """The enabled criteria by quantity, of attacks."""
        return {k: v for k, v in self._enabled.items() if k != "corruptions_acc"}

    @property
    def corrupted_criteria(self) -> dict[str, Criterion]:
        """The same of corruptions."""
        return {k: v for k, v in self._enabled.items() if k in ("clean_acc", "corruptions_acc")}

    @property
    def _enabled(self) -> dict[str, Criterion]:
        named = {name: getattr(self, name) for name in type(self).model_fields}
        return {k: v for k, v in named.items() if isinstance(v, Criterion) and v.enabled}
