"""Best known: what of a model's samples no record of the folder has broken, whoever broke it; and
verified: what no perturbation whatever can break.

Robust accuracy is a protocol's number, the same attacks for every model; beside it stands the best
that is known of this one, from above and, where a model's bounds are kept, from below. A find of any
record counts for a row of the leaderboard if it is of the same model (fingerprint) and norm, and in
the row's ball, of the row's very sample: :mod:`robench.results.finds`. Bounds count where they are
of the row's ball or a larger one, and of all of its samples.

Where verdicts do not repeat, chance breaks a little more of the samples with every further record.
So of models that draw at random there is no such number, and records during which the model changed
lower none.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from robench.records import Bounds
from robench.reporting.model_results import Bools, ModelResult
from robench.results import StoredRecord
from robench.results.bounds import check_bounds
from robench.results.finds import SamplesInBall, found_in, has_finds, repeats
from robench.statistics import Interval, wilson


class BestKnown:
    """What the records and bounds of a folder say together, whatever attack, radius, seed or n they
    are of.

    Args:
        records: all that are known.
        bounds: all that are known.

    Raises:
        ContradictionError: a sample is verified and broken at once.
    """

    def __init__(self, records: Iterable[StoredRecord], bounds: Iterable[Bounds] = ()) -> None:
        self._finding: dict[tuple[str, str], list[StoredRecord]] = defaultdict(list)
        self._bounds: dict[tuple[str, str], list[Bounds]] = defaultdict(list)
        for stored in records:
            record = stored.record
            if has_finds(record):
                about = record.model.fingerprint, record.threat_model.family
                self._finding[about].append(stored)
        for item in bounds:
            about = item.model.fingerprint, item.threat_model.norm
            check_bounds(self._finding[about], [item])
            self._bounds[about].append(item)

    def robust_acc(self, result: ModelResult) -> Interval | None:
        """Percent of the result's samples that neither its own attacks nor any record has broken,
        with the 95 % Wilson interval; None: the model's verdicts do not repeat."""
        robust = self.robust(result)
        return None if robust is None else wilson(int(robust.sum()), result.n).scaled(100)

    def robust(self, result: ModelResult) -> Bools | None:
        """Which of the result's samples nothing has broken, (n,); None as of :meth:`robust_acc`."""
        if not all(repeats(stored.record) for stored in result.attacks.values()):
            return None
        return result.robust & ~self.found(_samples(result))

    def found(self, samples: SamplesInBall) -> Bools:
        """Which of the samples some record has broken in their ball, (n,)."""
        found = np.zeros(len(samples.sample_ids), dtype=np.bool_)
        for stored in self._finding[samples.model, samples.threat_model.family]:
            found |= found_in(stored, samples)
        return found

    def verified_acc(self, result: ModelResult) -> Interval | None:
        """Percent of the result's samples that no perturbation in its ball can break, with the 95 %
        Wilson interval; None: not all of them are bounded."""
        samples = _samples(result)
        bounded, verified = (np.zeros(result.n, dtype=np.bool_) for _ in range(2))
        for item in self._bounds[samples.model, samples.threat_model.norm]:
            if item.threat_model.eps >= samples.threat_model.eps:
                rows, known = _aligned(item, samples)
                bounded |= known
                verified |= known & np.array([item.samples[row].verified for row in rows])
        return wilson(int(verified.sum()), result.n).scaled(100) if bounded.all() else None


def _samples(result: ModelResult) -> SamplesInBall:
    return SamplesInBall(
        result.model.fingerprint,
        result.dataset,
        result.threat_model,
        result.sample_ids,
        result.labels,
        result.clean_margin,
    )


def _aligned(bounds: Bounds, samples: SamplesInBall) -> tuple[list[int], Bools]:
    """For each of the samples its place among those that are bounded, and whether it is one of
    them; the place of others means nothing."""
    place = {sample.sample_id: row for row, sample in enumerate(bounds.samples)}
    there = np.array([name in place for name in samples.sample_ids])
    rows = [place.get(name, 0) for name in samples.sample_ids]
    own = SamplesInBall.of_bounds(bounds).at(rows)
    return rows, there & samples.are(own)
