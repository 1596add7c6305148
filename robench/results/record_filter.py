"""Which of the stored records are wanted."""

from __future__ import annotations

from dataclasses import dataclass

from robench.records import EvaluationRecord
from robench.threat_models import parse_eps, parse_norm

__all__ = ["RecordFilter"]


@dataclass(frozen=True)
class RecordFilter:
    """Records on a data set, under a norm and ε as they are written ("8/255"), of n samples and a
    seed; what is None lets all through.

    Raises:
        UsageError: norm or ε make no sense.
    """

    dataset: str | None = None
    norm: str | None = None
    eps: str | None = None
    n: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.norm is not None:
            parse_norm(self.norm)
        if self.eps is not None:
            parse_eps(self.eps)

    def matches(self, record: EvaluationRecord) -> bool:
        """Whether ``record`` is one of them."""
        threat = record.threat_model
        return (
            self.dataset in (None, record.dataset.name)
            and (self.norm is None or parse_norm(self.norm) == threat.norm)
            and (self.eps is None or parse_eps(self.eps)[0] == threat.eps)
            and self.n in (None, record.n)
            and self.seed in (None, record.seed)
        )
