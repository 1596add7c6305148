"""Which samples a record shows to be misclassified somewhere in a ball, whatever it was made for.

A find in a smaller ball lies in the larger one; of a larger ball those finds count whose stored size
is no more than the radius. A sample is the same if it is of data with the same fingerprint, or of
another part of the same split, prepared alike, where id, label and clean margin agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from robench.records import Bounds, DatasetSpec, EvaluationRecord, Outcome
from robench.results.stored_record import StoredRecord
from robench.threat_models import ThreatModel

Bools = npt.NDArray[np.bool_]

UNREPEATABLE = {
    *("randomised", "judged_by_draws"),
    *("changing_state", "history_dependent", "buffers_changed"),
}
"""Flags of records whose verdicts another run need not give again"""

_SIZE_ROUNDING = 4 * 2.0**-24
"""What the adjudicator tolerates of a ball's border, at least: sizes are of float32 images"""

_SAME_MARGIN = 1e-3
"""By what share the clean margins of one sample may differ between machines and batches"""


@dataclass(frozen=True)
class SamplesInBall:
    """Samples of one model, and how far they may be changed.

    Attributes:
        model: its fingerprint.
        sample_ids, labels, clean_margins: each (n,).
    """

    model: str
    dataset: DatasetSpec
    threat_model: ThreatModel
    sample_ids: npt.NDArray[np.object_]
    labels: npt.NDArray[np.int64] | npt.NDArray[np.float64]
    clean_margins: npt.NDArray[np.float64]

    @classmethod
    def of_bounds(cls, bounds: Bounds) -> SamplesInBall:
        """Those that are bounded."""
        return cls(
            bounds.model.fingerprint,
            bounds.dataset,
            bounds.threat_model,
            np.array([sample.sample_id for sample in bounds.samples], dtype=object),
            np.array([sample.label for sample in bounds.samples]),
            np.array([sample.clean_margin for sample in bounds.samples], dtype=np.float64),
        )

    def at(self, rows: Sequence[int]) -> SamplesInBall:
        """Some of them, in this order."""
        per_sample = {"sample_ids", "labels", "clean_margins"}
        return replace(self, **{name: getattr(self, name)[rows] for name in per_sample})

    def are(self, other: SamplesInBall) -> Bools:
        """Which of these are the very samples of ``other``, whose rows are in the same order. (n,)."""
        if self.dataset.fingerprint == other.dataset.fingerprint:
            return np.ones(len(self.sample_ids), dtype=np.bool_)
        if _source(self.dataset) != _source(other.dataset):
            return np.zeros(len(self.sample_ids), dtype=np.bool_)
        # An id is no proof: numbered ids are the same in any data of the same name.
        margins = self.clean_margins, other.clean_margins
        alike = np.isclose(*margins, rtol=_SAME_MARGIN, atol=0.1 * _SAME_MARGIN)
        return np.asarray((self.labels == other.labels) & alike)


def repeats(record: EvaluationRecord) -> bool:
    """Whether another run would give the record's verdicts again."""
    return UNREPEATABLE.isdisjoint(flag.name for flag in record.flags)


def has_finds(record: EvaluationRecord) -> bool:
    """Whether the record may show a misclassified input that can be counted on."""
    tells = record.count(Outcome.BROKEN) > 0 or record.threat_model.targets is not None
    return tells and repeats(record)


def is_about(record: EvaluationRecord, samples: SamplesInBall) -> bool:
    """Whether they are of one model and norm."""
    return (record.model.fingerprint, record.threat_model.family) == (
        samples.model,
        samples.threat_model.family,
    )


def found_in(stored: StoredRecord, samples: SamplesInBall) -> Bools:
    """Which of the samples the record, of their model and norm, has broken in their ball. (n,)."""
    record, threat = stored.record, samples.threat_model
    table = stored.table.set_index("sample_id").reindex(samples.sample_ids)
    found: Bools = (table["outcome"] == Outcome.BROKEN.value).to_numpy(np.bool_)

    def column(name: str) -> npt.NDArray[np.float64]:
        return table[name].to_numpy(np.float64, na_value=np.nan)

    labels = column("label")
    if record.threat_model.targets is not None:
        # At its target or at another wrong class: it is misclassified either way.
        at = column("adv_prediction")
        found = ~np.isnan(at) & (at != labels)
    if record.threat_model.eps > threat.eps:
        found = found & (column("perturbation_size") <= threat.radius + _SIZE_ROUNDING)
    own = SamplesInBall(
        samples.model,
        record.dataset,
        record.threat_model,
        samples.sample_ids,
        labels,
        column("clean_margin"),
    )
    return found & samples.are(own)


def _source(data: DatasetSpec) -> tuple[object, ...]:
    return data.name, data.split, data.num_classes, data.preprocessing
