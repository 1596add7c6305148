"""Which of the stored records are wanted."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from robench.errors import UsageError
from robench.registry import unknown_name
from robench.request import GOALS
from robench.threat_models import class_number, parse_eps, parse_norm, parse_radii

if TYPE_CHECKING:
    from robench.records import EvaluationRecord


@dataclass(frozen=True)
class RecordFilter:
    """Records on a data set, under a norm and an ε as it is written ("8/255", or several, "1/255,8/255"),
    of n samples, a seed, a goal, and targets, a rule or a class; what is None lets all through.

    Raises:
        UsageError: norm or ε make no sense, or targets are named without their goal.
        UnknownNameError: there is no such goal.
    """

    dataset: str | None = None
    norm: str | None = None
    eps: str | None = None
    n: int | None = None
    seed: int | None = None
    goal: str | None = None
    targets: str | int | None = None

    def __post_init__(self) -> None:
        if self.goal not in (None, *GOALS):
            raise unknown_name("goal", str(self.goal), list(GOALS))
        if self.targets is not None and self.goal != "targeted":
            raise UsageError(
                "targets are named without their goal", hint="Write --goal targeted too"
            )
        if self.norm is not None:
            parse_norm(self.norm)
        if self.eps is not None:
            parse_radii(self.eps)

    def matches_part(self, record: EvaluationRecord) -> bool:
        """Whether the whole that ``record`` is a part of is one of them."""
        n = None if record.part is None else record.part.dataset.n
        return self.n in (None, n) and replace(self, n=None).matches(record)

    def matches(self, record: EvaluationRecord) -> bool:
        """Whether ``record`` is one of them."""
        threat = record.threat_model
        return (
            self.dataset in (None, record.dataset.name)
            and (self.norm is None or parse_norm(self.norm) == threat.family)
            and (self.eps is None or threat.eps in _values(self.eps))
            and self.n in (None, record.n)
            and self.seed in (None, record.seed)
            and self.goal in (None, threat.goal)
            and (self.targets is None or str(self.targets) in _names_of_targets(record))
        )


@functools.cache
def _values(eps: str) -> frozenset[Fraction]:
    return frozenset(parse_eps(radius)[0] for radius in parse_radii(eps))


def _names_of_targets(record: EvaluationRecord) -> set[str]:
    """What one may call a record's targets: their rule, or the class by number and name."""
    rule, names = str(record.threat_model.targets), record.dataset.class_names
    number = class_number(rule)
    return {rule} if number is None else {rule, *names[number : number + 1]}
