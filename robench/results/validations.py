"""Validations on disk: one JSON each beside the records, and the verdict that follows from its parts.

::

    validations/abcd….json     what was seen, what was tried, and the verdict

Written whole or not at all, with its own checksum. The verdict is derived anew when it is read, so
that nobody's hand can better it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robench.errors import CorruptRecordError, StoreError
from robench.records import Diagnosis, Outcome, Trial, Validation, Verdict
from robench.results.documents import read_document_of, write_document
from robench.results.store import Store
from robench.results.stored_record import StoredRecord
from robench.statistics import exact, is_resolved

log = logging.getLogger("robench.results")

_LOOKS_AT = {
    "gradients": (
        *("no_gradients", "zero_gradients", "nan_gradients", "nonfinite_gradients"),
        *("flat_margin", "gradient_mismatch", "fidelity", "gradients_lost", "unbounded_attack"),
    ),
    "jumps": ("continuity", "stability"),
    "searches": (
        *("binarisation", "square_lowers_accuracy", "black_box_beats_gradients"),
        *("transfer_beats_direct", "less_beats_more", "one_step_beats_many"),
        *("incomplete_search", "silent_success"),
    ),
}
"""Tests that look at different things find masking independently of each other; a test that is not here
looks at a thing of its own."""
_ANSWERED = {
    *("resolution", "vanishing_gradients", "coarse_margins", "softmax_outputs", "sigmoid_outputs"),
    *("randomised", "hidden_outputs"),
}
"""Masking to which what is tried is the whole answer: losses without a scale, averaged gradients, the
logits inside."""


ERRORED = "errored_samples"
"""The test that finds samples without a verdict: they count as not robust, and nobody knows"""


@dataclass(frozen=True)
class Judgement:
    """What follows from diagnoses and trials."""

    verdict: Verdict
    reasons: tuple[str, ...]


def judgement(
    diagnoses: Sequence[Diagnosis], trials: Sequence[Trial], *, n: int, robust: int
) -> Judgement:
    """The verdict on a number of ``n`` samples, ``robust`` of which the suite left standing.

    ``unreliable``: samples have no verdict; or some samples are left, a test found masking, and either none of what it asks for could
    be tried, or nothing moved the number though the masking is severe, or tests of two independent kinds
    found some (:data:`_LOOKS_AT`). ``lowered``: the countermeasures broke more than chance makes of a
    sound model (:mod:`robench.statistics.resolution`). ``stands``: neither.
    """
    tried = {trial.countermeasure for trial in trials if trial.tried}
    finds = sum(trial.finds for trial in trials)
    masked = [item for item in diagnoses if item.outcome == "masked"]
    unanswered = [item for item in masked if tried.isdisjoint(item.asks_for)]
    moved = is_resolved(finds, n)
    reasons = []
    if finds:
        by = ", ".join(f"{t.countermeasure} {t.finds}" for t in trials if t.finds)
        lost = exact(finds, n).scaled(100)
        reasons.append(
            f"countermeasures broke {finds} more of {n} samples ({by}): {lost.estimate:.1f} points, "
            f"95 % interval {lost.low:.2f} to {lost.high:.2f}"
            + ("" if moved else ", no more than chance may make of 0.2 points")
        )
    # Of samples without a verdict a number may be too low as well.
    doubted = unanswered if finds < robust else [i for i in unanswered if i.test == ERRORED]
    if doubted:
        for item in doubted:
            asked = ", ".join(item.asks_for)
            missing = f"{asked} could not be tried" if asked else "nothing can be tried against it"
            reasons.append(f"{item.test}: {missing}")
        return Judgement("unreliable", tuple(reasons))
    if moved:
        return Judgement("lowered", tuple(reasons))
    if finds < robust and (severe := [item.test for item in masked if item.severe]):
        reasons.append(f"{', '.join(severe)}: severe, and nothing that was tried moved the number")
        return Judgement("unreliable", tuple(reasons))
    names = ", ".join(item.test for item in masked)
    if finds < robust and len(_things({item.test for item in masked} - _ANSWERED)) > 1:
        reasons.append(
            f"{names}: independent signs of masking, and nothing that was tried moved the number"
        )
        return Judgement("unreliable", tuple(reasons))
    if masked:
        reasons.append(f"{names}: what was asked for was tried and moved nothing")
    return Judgement("stands", tuple(reasons))


def _things(tests: Iterable[str]) -> set[str]:
    """What tests look at."""
    known = {test: thing for thing, tests in _LOOKS_AT.items() for test in tests}
    return {known.get(test, test) for test in tests}


class Validations:
    """The validations of a results folder."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.folder = store.folder / "validations"

    def path_of(self, key: str) -> Path:
        """Where the validation of ``key`` is or would be."""
        return self.folder / f"{key}.json"

    def write(self, validation: Validation) -> Path:
        """Keep a validation, in place of an earlier one with its key.

        Raises:
            StoreError: it contradicts itself, or the folder cannot be written.
        """
        if (problem := _contradiction(validation)) is not None:
            raise StoreError(f"the validation contradicts itself: {problem}", where=validation.key)
        return write_document(self.folder, "validation", validation)

    def find(self, key: str) -> Validation | None:
        """The validation of ``key``, if there is a sound one; a damaged one is set aside."""
        path = self.path_of(key)
        if not path.is_file():
            return None
        try:
            return read_validation(path)
        except CorruptRecordError as error:
            self.store.quarantine([path], key, str(error))
            return None

    def paths(self) -> list[Path]:
        """The files, in order of keys."""
        return sorted(self.folder.glob("*.json"))

    def check(self, validation: Validation, path: Path) -> None:
        """Hold a validation, read from ``path``, against all records that it is made of.

        Raises:
            StoreError: a record is not here, or of another model.
            CorruptRecordError: a record is damaged, or the validation says something else than its
                records do.
        """
        self._check_base(validation, path, {})
        base = [self.store.read(key) for key in validation.base]
        keys = {trial.key for trial in validation.trials if trial.key is not None}
        for key in sorted(keys):
            if not self.store.has(key):
                raise StoreError(
                    f"the validation of {validation.model.id} has finds in a record that is not here",
                    where=path,
                    hint="Run `robench validate` again",
                )
        trials = {key: self.store.read(key) for key in keys}
        if (problem := _against_records(validation, base, trials)) is not None:
            raise CorruptRecordError(f"contradicts its records: {problem}", where=path)

    def all(self) -> Iterator[Validation]:
        """Every sound one whose records are here and of its model, in order of keys; the others are
        logged as warnings, by name."""
        known: dict[str, str | None] = {}
        for path in self.paths():
            try:
                validation = read_validation(path)
                self._check_base(validation, path, known)
            except StoreError as error:
                log.warning("left out: %s", error)
            else:
                yield validation

    def _check_base(self, validation: Validation, path: Path, known: dict[str, str | None]) -> None:
        """Refuse a validation of records that are not here, or are another model's.

        Raises:
            StoreError: it is of such records.
        """
        for key in validation.base:
            if key not in known:
                has = self.store.has(key)
                known[key] = self.store.read(key).record.model.fingerprint if has else None
            if known[key] is None:
                raise StoreError(
                    f"the validation of {validation.model.id} is of a record that is not here",
                    where=path,
                    hint="Run `robench validate` again",
                )
            if known[key] != validation.model.fingerprint:
                raise StoreError(
                    f"the validation of {validation.model.id} is of another model's record",
                    where=path,
                    hint="Run `robench validate` again",
                )


def read_validation(path: Path) -> Validation:
    """The validation in a file: checksum, schema, key and verdict verified.

    Raises:
        StoreError: it cannot be read.
        CorruptRecordError: it is damaged, or contradicts itself.
    """
    found = read_document_of(Validation, path, "validation")
    if (problem := _contradiction(found)) is not None:
        raise CorruptRecordError(f"contradicts itself: {problem}", where=path)
    return found


def _contradiction(validation: Validation) -> str | None:
    n = validation.dataset.n
    finds = sum(trial.finds for trial in validation.trials)
    robust = round(validation.robust_acc * n / 100)
    if not validation.has_its_key():
        return "its key is not that of its content"
    shares = (
        (validation.robust_acc, robust),
        (validation.best_known_acc, robust - finds),
        (validation.lowered_by, finds),
        *((trial.lowered_by, trial.finds) for trial in validation.trials),
    )
    if any(not math.isclose(told, 100 * count / n, abs_tol=1e-9) for told, count in shares):
        return "its accuracies are not those of its finds"
    derived = judgement(validation.diagnoses, validation.trials, n=n, robust=robust)
    if (validation.verdict, validation.reasons) != (derived.verdict, derived.reasons):
        return "its verdict does not follow from its diagnoses and trials"
    return None


def _against_records(
    validation: Validation, base: Sequence[StoredRecord], trials: Mapping[str, StoredRecord]
) -> str | None:
    """What a validation says that its suite's records, or those of its trials by key, do not."""
    for stored in [*base, *trials.values()]:
        record, name = stored.record, stored.record.attack.name
        if record.model.fingerprint != validation.model.fingerprint:
            return f"the record of {name} is another model's"
        if record.dataset.fingerprint != validation.dataset.fingerprint:
            return f"the record of {name} is of other samples"
        if (record.threat_model, record.seed) != (validation.threat_model, validation.seed):
            return f"the record of {name} is under another threat model or seed"
    robust = set.intersection(*(_with(stored, Outcome.SURVIVED) for stored in base))
    told = round(validation.robust_acc * validation.dataset.n / 100)
    if len(robust) != told:
        return f"{len(robust)} samples survive the suite's records, not {told}"
    for key, stored in trials.items():
        finds = sum(trial.finds for trial in validation.trials if trial.key == key)
        found = len(_with(stored, Outcome.BROKEN) & robust)
        if found != finds:
            return f"the countermeasures' record has {found} new finds, not {finds}"
    return None


def _with(stored: StoredRecord, outcome: Outcome) -> set[str]:
    """The samples of an outcome."""
    table = stored.table
    return set(table["sample_id"][table["outcome"] == outcome.value])
