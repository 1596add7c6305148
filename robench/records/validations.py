"""What a validation says of a robustness number: what was seen, what was tried, what it is worth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from robench.records.base import (
    Answer,
    Frozen,
    Name,
    Real,
    SchemaVersion,
    Sha256,
    Shown,
    Whole,
    canonical_hash,
)
from robench.records.evaluations import DatasetSpec, ModelSummary
from robench.threat_models import ThreatModel

VALIDATION_REVISION = 2
"""Raised when the same validation would say something else, so that old ones are not reused."""

Verdict = Literal["stands", "lowered", "unreliable"]
"""Of a number: nothing moved it; it is lower by so much; gradients are masked, and what this asks for
could not be tried, or nothing came of it."""


class Diagnosis(Frozen):
    """What one test says of a model: whether something hides its adversarial inputs."""

    test: Name
    outcome: Literal["sound", "masked", "undefined"]
    """``undefined``: the test says nothing about this model, and ``evidence`` why."""
    evidence: Shown
    """One sentence with figures."""
    value: Real | None = None
    """What was measured; None: undefined."""
    threshold: Real | None = None
    """What ``value`` was held against."""
    asks_for: tuple[Name, ...] = ()
    """The countermeasures that would find what is hidden; of a masked model only."""
    severe: Answer = False
    """Whether it makes the number worthless unless a countermeasure moves it."""


class Trial(Frozen):
    """One countermeasure: what its searches found that the suite had not."""

    countermeasure: Name
    asked_by: tuple[Name, ...] = ()
    """The tests that asked for it; none: it always runs."""
    tried: Answer
    """Whether its searches ran; else ``message`` says why not."""
    key: Sha256 | None = None
    """The record that holds its finds; None: there is none."""
    finds: Whole = Field(0, ge=0)
    """Samples that it broke and neither the suite nor a countermeasure before it had."""
    lowered_by: Real = Field(0.0, ge=0)
    """The same in points of all samples."""
    message: Shown | None = None


class Validation(Frozen):
    """A suite's number for one model, data set, threat model and seed, and what it is worth."""

    schema_version: SchemaVersion = 1
    key: Sha256
    model: ModelSummary
    dataset: DatasetSpec
    threat_model: ThreatModel
    suite: Shown
    seed: Whole
    precision: Shown
    """Of the searches, as asked for."""
    base: tuple[Sha256, ...] = Field(min_length=1)
    """The keys of the suite's records."""
    transfers: tuple[Sha256, ...] = ()
    """The keys of records of inputs that the suite's attacks made for other models"""
    protocol: Sha256
    """Of the tests and countermeasures that there were."""
    robust_acc: Real = Field(ge=0, le=100)
    """The suite's number, in percent."""
    best_known_acc: Real = Field(ge=0, le=100)
    """Percent of the samples that neither the suite nor a countermeasure broke."""
    lowered_by: Real = Field(ge=0)
    """Points between the two."""
    verdict: Verdict
    reasons: tuple[Shown, ...] = ()
    """What the verdict follows from, one sentence each."""
    diagnoses: tuple[Diagnosis, ...] = ()
    trials: tuple[Trial, ...] = ()
    seconds: Real = Field(0.0, ge=0)
    """What it took beyond the suite's own records."""
    created: Shown
    """UTC, ISO 8601."""

    def has_its_key(self) -> bool:
        """Whether the key is the content's."""
        about = self.model.fingerprint, self.base, self.protocol, self.transfers
        return self.key == validation_key(*about)

    @property
    def masked(self) -> tuple[Diagnosis, ...]:
        """The tests that found something."""
        return tuple(item for item in self.diagnoses if item.outcome == "masked")


def validation_key(
    model: str, base: Iterable[str], protocol: str, transfers: Iterable[str] = ()
) -> str:
    """The content address of a validation.

    ``model`` is its fingerprint, ``base`` the keys of the records whose number is judged, which hold
    data, threat model, attacks, seed and precision, ``protocol`` the hash of the tests and
    countermeasures, ``transfers`` the keys of the records of inputs that were made for other models.
    """
    content: dict[str, Any] = {"revision": VALIDATION_REVISION, "model": model}
    content |= {"protocol": protocol, "base": sorted(base)}
    if others := sorted(transfers):  # as before there were any
        content["transfers"] = others
    return canonical_hash(content)
