"""Lower bounds: how far no perturbation in a ball can push a model's margins, sample by sample."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from robench.records.base import Answer, Frozen, Real, SchemaVersion, Sha256, Shown, canonical_hash
from robench.records.evaluations import DatasetSpec, ModelSummary
from robench.threat_models import ThreatModel

BOUNDS_REVISION = 1
"""Raised when the same bounds would come out otherwise, so that old ones are not reused."""

BoundsMethod = Literal["ibp", "crown-ibp", "crown"]
"""By what they cost, none looser than the one before."""


class BoundedSample(Frozen):
    """What is known of one sample."""

    sample_id: str
    label: int
    clean_margin: Real | None
    """The label's logit minus the largest other, of the clean input; None: undefined."""
    lowest_margin: Real | None
    """No input in the ball has a lower one; None: it overflowed, and nothing is known."""
    verified: Answer
    """Whether no input in the ball is misclassified, with room for the network's own rounding."""


class Bounds(Frozen):
    """Bounds of one method on one model's samples in one ball."""

    schema_version: SchemaVersion = 1
    key: Sha256
    model: ModelSummary
    dataset: DatasetSpec
    threat_model: ThreatModel
    method: BoundsMethod
    samples: tuple[BoundedSample, ...]
    seconds: Real
    """What it took to bound them."""
    created: Shown
    """UTC, ISO 8601."""

    @model_validator(mode="after")
    def _agrees(self) -> Bounds:
        if len({sample.sample_id for sample in self.samples}) != self.dataset.n:
            raise ValueError(f"it has other samples than the {self.dataset.n} of its data")
        key = bounds_key(
            self.model.fingerprint, self.dataset.fingerprint, self.threat_model, self.method
        )
        if self.key != key:
            raise ValueError("its key is not that of its content")
        for sample in self.samples:
            low, clean = sample.lowest_margin, sample.clean_margin
            if sample.verified and (low is None or clean is None or not 0 < low <= 1.001 * clean):
                raise ValueError(f"{sample.sample_id!r} is verified against its margins")
        return self


def bounds_key(model: str, dataset: str, threat_model: ThreatModel, method: BoundsMethod) -> str:
    """The content address of bounds; ``model`` and ``dataset`` are fingerprints."""
    return canonical_hash(
        {
            "revision": BOUNDS_REVISION,
            "model": model,
            "dataset": dataset,
            "threat_model": threat_model.identity,
            "method": method,
        }
    )
