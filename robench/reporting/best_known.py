"""Best known: what of a model's samples no record of the folder has broken, whoever broke it.

Robust accuracy is a protocol's number, the same attacks for every model; beside it stands the best
that is known of this one. A find of any record counts for a row of the leaderboard if it is of the
same model (fingerprint) and norm, lies within the row's radius, and is of the row's very sample:
of data with the same fingerprint, or of another part of the same split, prepared alike, where id,
label and clean verdict agree. A find in a smaller ball lies in the larger one; of a larger ball
those finds count whose stored size is no more than the row's radius.

Where verdicts do not repeat, chance breaks a little more of the samples with every further record.
So of models that draw at random there is no such number, and records during which the model changed
lower none.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from robench.records import EvaluationRecord, Outcome
from robench.reporting.model_results import Bools, ModelResult
from robench.results import StoredRecord
from robench.statistics import Interval, wilson

_UNREPEATABLE = {"randomised", "judged_by_draws", "changing_state", "buffers_changed"}
"""Flags of records whose verdicts another run need not give again"""

_SIZE_ROUNDING = 4 * 2.0**-24
"""What the adjudicator tolerates of a ball's border, at least: sizes are of float32 images"""

_SAME_MARGIN = 1e-3
"""By what share the clean margins of one sample may differ between machines and batches"""


class BestKnown:
    """What the records of a folder say together, whatever attack, radius, seed or n they are of.

    Args:
        records: all that are known.
    """

    def __init__(self, records: Iterable[StoredRecord]) -> None:
        self._finding: dict[tuple[str, str], list[StoredRecord]] = defaultdict(list)
        for stored in records:
            record = stored.record
            tells = record.count(Outcome.BROKEN) or record.threat_model.targets is not None
            if tells and _repeats(record):
                about = record.model.fingerprint, record.threat_model.norm
                self._finding[about].append(stored)

    def robust_acc(self, result: ModelResult) -> Interval | None:
        """Percent of the result's samples that neither its own attacks nor any record has broken,
        with the 95 % Wilson interval; None: the model's verdicts do not repeat."""
        robust = self.robust(result)
        return None if robust is None else wilson(int(robust.sum()), result.n).scaled(100)

    def robust(self, result: ModelResult) -> Bools | None:
        """Which of the result's samples nothing has broken, (n,); None as of :meth:`robust_acc`."""
        if not all(_repeats(stored.record) for stored in result.attacks.values()):
            return None
        robust = result.robust.copy()
        about = result.model.fingerprint, result.threat_model.norm
        for stored in self._finding[about]:
            robust &= ~_found(stored, result)
        return robust


def _repeats(record: EvaluationRecord) -> bool:
    return _UNREPEATABLE.isdisjoint(flag.name for flag in record.flags)


def _found(stored: StoredRecord, result: ModelResult) -> Bools:
    """Which of the result's samples the record has broken in the result's ball, (n,)."""
    record = stored.record
    table = stored.table.set_index("sample_id").reindex(result.sample_ids)
    found: Bools = (table["outcome"] == Outcome.BROKEN.value).to_numpy(np.bool_)

    def column(name: str) -> npt.NDArray[np.float64]:
        return table[name].to_numpy(np.float64, na_value=np.nan)

    if record.threat_model.targets is not None:
        # At its target or at another wrong class: it is misclassified either way.
        at = column("adv_prediction")
        found = ~np.isnan(at) & (at != result.labels)
    if record.threat_model.eps > result.threat_model.eps:
        found = found & (column("perturbation_size") <= result.threat_model.radius + _SIZE_ROUNDING)
    if record.dataset.fingerprint != result.group.fingerprint:
        if _source(record) != _source(next(iter(result.attacks.values())).record):
            return np.zeros_like(found)
        # An id is no proof: numbered ids are the same in any data of the same name.
        margins = column("clean_margin"), result.clean_margin
        alike = np.isclose(*margins, rtol=_SAME_MARGIN, atol=0.1 * _SAME_MARGIN)
        found = found & (column("label") == result.labels) & alike
    return found


def _source(record: EvaluationRecord) -> tuple[object, ...]:
    data = record.dataset
    return data.name, data.split, data.num_classes, data.preprocessing
