"""Joins the parts of a job into the record that one process would have made of all its samples.

The table is the parts' rows in the data set's order. Counts, stages and flags are added up or derived
again; metrics that compare samples with each other are computed here, from features that the parts
kept. No model is needed.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from robench.errors import StoreError
from robench.evaluation.flags import FLAGS_OF_ATTACKS, attack_flags, errored_flags, stalled_flags
from robench.evaluation.given import joined
from robench.evaluation.parts import ADV_FEATURES, FEATURES, POSITIONS, part_rows
from robench.evaluation.record_builder import PANEL_SAMPLES, half_broken
from robench.evaluation.sample_metrics import of_features
from robench.metric_catalogue import METRICS
from robench.records import (
    Cost,
    Environment,
    EvaluationRecord,
    Flag,
    Outcome,
    RunCounts,
    StageResult,
)
from robench.request import Part
from robench.results import SamplePanel, Store, StoredRecord
from robench.results.arrays import Array, ArrayRows, Rows
from robench.results.bounds import check_bounds, known_bounds
from robench.results.consistency import check_consistency, class_accuracies, metric_means
from robench.results.parts import Division, KeptPart, difference, divisions
from robench.results.tables import SampleRows
from robench.results.tables import joined as joined_tables
from robench.text import visible

_AFTER_ATTACKS = ("buffers_changed", "errored_samples", "no_attention", "no_features", "no_metrics")
"""Flags that stand behind those of the attacks"""

_ROWS_AT_A_TIME = 32


def merge_all(stores: Sequence[Store], into: Store) -> tuple[list[StoredRecord], list[StoreError]]:
    """Join every job whose parts the results folders hold; also what kept others from being joined.

    Raises:
        StoreError: no folder holds a part; the folder ``into`` cannot be written.
        ContradictionError: a sample was broken that the bounds of ``into`` verify. The record is kept.
    """
    found = divisions([*stores, into])
    if not found:
        raise StoreError(
            "no parts are there",
            where=", ".join(str(store.folder) for store in stores),
            hint="`robench run --shard K/N` makes them",
        )
    joined, problems = list[StoredRecord](), list[tuple[Division, StoreError]]()
    for division in found:
        if into.has(division.whole):
            continue
        try:
            joined.append(merge(division, into))
        except StoreError as error:
            problems.append((division, _explained(error, division, found)))
    check_bounds(joined, known_bounds(into))
    # The same job may be there in another number of parts as well.
    return joined, [error for division, error in problems if not into.has(division.whole)]


def _explained(error: StoreError, division: Division, found: Sequence[Division]) -> StoreError:
    """With what speaks for parts of another job having been taken for this one's."""
    if not division.missing:
        return error
    others = (other for other in found if other.whole != division.whole)
    unlike = next((told for other in others if (told := difference(division, other))), None)
    if unlike is None:
        return error
    hint = f"Parts of another job are there, which differs in {unlike}"
    return StoreError(error.what, where=error.where, hint=hint)


def merge(division: Division, into: Store) -> StoredRecord:
    """Join parts, and keep the record in the results folder ``into``.

    Raises:
        StoreError: parts are missing, there twice, not of this division, or made by another version
            or in another precision; or the folder cannot be written.
    """
    division.check_complete()
    _check_made_alike(division)
    joined = _Joined([_LoadedPart.read(part) for part in division.parts])
    stored = StoredRecord.of(joined.record(), joined.samples)
    check_consistency(stored)
    kept = all(part.store.has_adversarial(part.of.key) for part in division.parts)
    adversarial = joined.adversarial() if kept else None
    return into.write(stored.record, stored.samples, adversarial=adversarial, arrays=joined.panel())


def _check_made_alike(division: Division) -> None:
    """Refuse parts that would not be of one run though their keys agree."""
    first, *others = division.parts
    for other in others:
        told = zip(_made_by(first), _made_by(other), strict=True)
        for (what, one), (_, two) in told:
            if one != two:
                raise StoreError(
                    f"part {other.of.index} of {division.count} was made with another {what}, "
                    f"{two} instead of {one}: {division}",
                    where=other.store.folder,
                    hint="Make it again as the others, or choose --precision fp32 for all"
                    if what == "precision"
                    else "Make it again with the version of the others",
                )


def _made_by(part: KeptPart) -> list[tuple[str, object]]:
    environment = part.stored.record.environment
    versions = environment.versions
    return [
        ("robench", versions.get("robench")),
        ("torch", versions.get("torch")),
        ("precision", environment.precision),
        ("plan", [(run.result.name, run.recheck) for run in part.of.runs]),
        ("whole", part.of.dataset),
    ]


@dataclass(frozen=True)
class _LoadedPart:
    part: KeptPart
    stored: StoredRecord
    arrays: Mapping[str, Array]

    @classmethod
    def read(cls, part: KeptPart) -> _LoadedPart:
        """With its arrays.

        Raises:
            StoreError: they are not those of a part.
        """
        arrays = part.store.read_arrays(part.of.key)
        positions, of = arrays.get(POSITIONS), part.of
        shape = (len(part.stored.arrow),)
        if positions is None or positions.shape != shape or positions.dtype != np.int64:
            raise StoreError(
                f"part {of.index} of {of.count} does not say which samples it holds",
                where=part.store.folder,
            )
        return cls(part, part.stored, arrays)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Of its rows among all samples."""
        return self.arrays[POSITIONS]


class _Joined:
    """All parts of one job."""

    def __init__(self, parts: Sequence[_LoadedPart]) -> None:
        first = parts[0].stored.record
        # The same job may have been asked for by other names.
        named = [part.stored.shown_as(first.attack.name, first.model).arrow for part in parts]
        self.parts, self.first = parts, first
        self.of = parts[0].part.of
        together = np.concatenate([part.positions for part in parts])
        order = np.argsort(together, kind="stable")
        if not np.array_equal(together[order], np.arange(self.of.dataset.n)):
            raise StoreError(
                f"the parts hold {len(together)} samples, and not each of {self.of.dataset.n} once",
                where=parts[0].part.store.folder.parent,
            )
        self.table: Any = joined_tables(named).take(pa.array(order))
        self._check_own()

    def _check_own(self) -> None:
        ids = self.table["sample_id"].to_pylist()
        for part in self.parts:
            of = part.part.of
            own = part_rows(ids, Part(of.index, of.count))
            if part.positions.tolist() != own:
                raise StoreError(
                    f"part {of.index} of {of.count} holds samples of other parts",
                    where=part.part.store.folder,
                    hint="Make it again with --shard",
                )

    # --- samples ---------------------------------------------------------------------------

    @cached_property
    def attacked(self) -> NDArray[np.int64]:
        """The rows that were classified correctly, and had something to be attacked for."""
        right = pc.equal(self.table["clean_prediction"], self.table["label"]).fill_null(False)
        due = pc.not_equal(self.table["outcome"], Outcome.AT_TARGET.value)
        found: NDArray[np.int64] = np.flatnonzero(pc.and_(right, due).to_numpy())
        return found

    @cached_property
    def samples(self) -> SampleRows:
        """One row for every sample, in the data set's order."""
        if not self.metrics:
            return SampleRows(self._without(METRICS))
        columns = self._of_features()
        table = self._without(columns)
        judged = pc.not_equal(table["outcome"], Outcome.ERRORED.value).to_numpy()
        defined = np.zeros(len(table), bool)
        defined[self.attacked] = judged[self.attacked]
        for name, column in columns.items() if defined.any() else ():
            values = np.zeros(len(table))
            values[self.attacked] = column.numpy()
            # What is undefined is NaN; only what was not looked at is absent.
            known = pa.array(values, mask=~defined, from_pandas=False)
            table = table.append_column(name, known)
        return SampleRows(joined_tables([table]))

    def _without(self, names: Container[str]) -> Any:
        return self.table.select([name for name in self.table.column_names if name not in names])

    @cached_property
    def metrics(self) -> list[str]:
        """The columns that the record has means of; none where a part could not be measured."""
        records = [part.stored.record for part in self.parts]
        if any(flag.name == "no_metrics" for record in records for flag in record.flags):
            return []
        known = dict.fromkeys(name for record in records for name in record.metrics)
        return [name for name in METRICS if visible(name) in known]

    def _of_features(self) -> dict[str, Tensor]:
        parts = [part for part in self.parts if FEATURES in part.arrays]
        if not parts:
            return {}
        places = np.concatenate([self._attacked_places(part) for part in parts])
        order = np.argsort(places, kind="stable")
        clean, adv = (
            torch.from_numpy(np.concatenate([part.arrays[name] for part in parts])[order])
            for name in (FEATURES, ADV_FEATURES)
        )
        labels = torch.from_numpy(self.table["label"].to_numpy()[self.attacked])
        lacking = self.table["adv_prediction"].is_null().to_numpy()[self.attacked]
        return of_features(clean, adv, labels, torch.from_numpy(lacking))

    def _attacked_places(self, part: _LoadedPart) -> NDArray[np.int64]:
        return part.positions[np.isin(part.positions, self.attacked)]

    # --- the record ------------------------------------------------------------------------

    @cached_property
    def runs(self) -> list[RunCounts]:
        """What every stage came to on all samples."""
        each = zip(*(part.part.of.runs for part in self.parts), strict=True)
        return [_added(runs) for runs in each]

    def record(self) -> EvaluationRecord:
        """The record under the whole's key."""
        first, records = self.first, [part.stored.record for part in self.parts]
        counts, n = self.samples.counts(), len(self.samples)
        stages = tuple(run.result for run in self.runs if run.listed)
        seconds = sum(record.cost.seconds for record in records)
        memory = [r.cost.peak_memory_mib for r in records if r.cost.peak_memory_mib is not None]
        drawn = first.model_copy(
            update={
                "key": self.of.whole,
                "dataset": self.of.dataset,
                "part": None,
                "counts": {
                    outcome: counts.get(outcome, 0)
                    for outcome in Outcome
                    if outcome is not Outcome.AT_TARGET or outcome in counts
                },
                "stages": stages if len(stages) > 1 or first.attack.through else (),
                "flags": tuple(self._flags(records)),
                "metrics": {},
                "class_robust_acc": {},
                "slopes": joined([r.slopes for r in records], self.table["sample_id"].to_pylist()),
                "cost": Cost(
                    forwards=sum(stage.forwards for stage in stages),
                    backwards=sum(stage.backwards for stage in stages),
                    seconds=seconds,
                    samples_per_second=n / seconds if seconds > 0 else None,
                    peak_memory_mib=max(memory, default=None),
                ),
                "environment": _together([record.environment for record in records]),
                "created": max(record.created for record in records),
            }
        )
        made = StoredRecord.of(drawn, self.samples)
        return drawn.model_copy(
            update={
                "metrics": metric_means(made.table, {name: name for name in self.metrics}),
                "class_robust_acc": class_accuracies(drawn, made.table),
            }
        )

    def _flags(self, records: Sequence[EvaluationRecord]) -> Iterator[Flag]:
        first, n = self.first, self.of.dataset.n
        flags = [flag for record in records for flag in record.flags]
        others = dict.fromkeys(flag for flag in flags if flag.name not in FLAGS_OF_ATTACKS)
        yield from (flag for flag in others if flag.name not in _AFTER_ATTACKS)
        yield from attack_flags(
            first.attack,
            self.runs,
            num_classes=None if first.threat_model.targets else self.of.dataset.num_classes,
            n=max(n, *(run.result.attempted for run in self.runs)),
        )
        stalled = (flag.count or 0 for flag in flags if flag.name == "workers_stalled")
        yield from stalled_flags(sum(stalled))
        after = [flag for flag in others if flag.name in _AFTER_ATTACKS] + errored_flags(
            SampleRows(self.table)
        )
        yield from sorted(after, key=lambda flag: _AFTER_ATTACKS.index(flag.name))

    # --- arrays ----------------------------------------------------------------------------

    def adversarial(self) -> Rows:
        """Every sample's adversarial input, as the parts kept them; some rows at a time."""
        kept = [part.part.store.adversarial_rows(part.part.of.key) for part in self.parts]
        return Rows((self.of.dataset.n, *kept[0].shape[1:]), self._adversarial_parts(kept))

    def _adversarial_parts(self, kept: Sequence[ArrayRows]) -> Iterator[NDArray[np.float32]]:
        n = self.of.dataset.n
        whose, place = np.empty(n, np.int64), np.empty(n, np.int64)
        for number, part in enumerate(self.parts):
            whose[part.positions], place[part.positions] = number, np.arange(len(part.positions))
        for start in range(0, n, _ROWS_AT_A_TIME):
            here = slice(start, start + _ROWS_AT_A_TIME)
            found = np.empty((len(whose[here]), *kept[0].shape[1:]), np.float32)
            for number, rows in enumerate(kept):
                mine = whose[here] == number
                if mine.any():
                    found[mine] = rows[place[here][mine]]
            yield found

    def panel(self) -> dict[str, Array]:
        """The samples that the record shows, each from the part that has it."""
        panels = [SamplePanel.from_arrays(part.arrays) for part in self.parts]
        shown = [panel for panel in panels if panel is not None]
        if not shown:
            return {}
        ids = {name for panel in shown for name in panel.sample_ids}
        shown_ids = pc.is_in(self.table["sample_id"], pa.array(sorted(ids), pa.string()))
        offered = list(SampleRows(self.table.filter(shown_ids)))
        outcomes = [row.outcome for row in offered]
        broken = torch.tensor([outcome is Outcome.BROKEN for outcome in outcomes])
        chosen = half_broken(broken, ~broken, PANEL_SAMPLES)
        return SamplePanel.joined(shown, [offered[at].sample_id for at in chosen]).to_arrays()


def _added(runs: Sequence[RunCounts]) -> RunCounts:
    """One run of a stage on the samples of all parts."""
    results = [run.result for run in runs]
    skipped = next((result.skipped for result in results if result.skipped), None)
    whole = StageResult(
        name=results[0].name,
        search=next((result.search for result in results if result.search), None),
        attempted=0 if skipped else sum(result.attempted for result in results),
        broken=sum(result.broken for result in results),
        errored=sum(result.errored for result in results),
        forwards=sum(result.forwards for result in results),
        backwards=sum(result.backwards for result in results),
        seconds=sum(result.seconds for result in results),
        skipped=skipped,
    )
    counted = ("searches", "zero_gradients", "nonfinite_gradients")
    summed = {name: sum(getattr(run, name) for run in runs) for name in counted}
    listed = any(run.listed for run in runs)
    return runs[0].model_copy(update={"result": whole, "listed": listed, **summed})


def _together(environments: Sequence[Environment]) -> Environment:
    """What the parts ran on; where they differ, all of it."""
    first = environments[0]
    names = ("device", "device_name", "precision_reason", "git")
    told = {name: _each(getattr(e, name) for e in environments) for name in names}
    packages = dict.fromkeys(name for e in environments for name in e.versions)
    versions = {name: _each(e.versions.get(name) for e in environments) for name in packages}
    known = {name: version for name, version in versions.items() if version is not None}
    return first.model_copy(update={**told, "versions": known})


def _each(values: Iterator[str | None]) -> str | None:
    return " / ".join(dict.fromkeys(v for v in values if v is not None)) or None
