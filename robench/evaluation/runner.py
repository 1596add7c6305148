"""From a plan to records: models × attacks on one data set, each job done once and stored.

card → model → attack proposes → adjudication decides → record. What is already in the store is
read from there; an interrupted job goes on from its last snapshot.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from robench.attacks.catalogue import foreign_code
from robench.datasets import Dataset
from robench.errors import CorruptRecordError, UsageError
from robench.evaluation.adversarial_inputs import FileInputs, room_for
from robench.evaluation.cascade import Cascade
from robench.evaluation.environment import PeakMemory
from robench.evaluation.parts import PANEL_OF_PART, arrays_for_merging, part_of, with_part
from robench.evaluation.plan import ModelPlan, Planner
from robench.evaluation.prepared_model import (
    Examination,
    PreparedModel,
    Settings,
    prepare_model,
)
from robench.evaluation.randomised import asked_draws, is_judged_by_draws
from robench.evaluation.recognition import may_go_on, told_margins
from robench.evaluation.record_builder import RecordBuilder
from robench.evaluation.snapshots import Saver, load_snapshot
from robench.metric_catalogue import foreign_metrics
from robench.models.wrapper import RobenchModel, buffer_fingerprint
from robench.records import (
    AttackSpec,
    Bounds,
    DatasetSpec,
    Flag,
    Slopes,
    Suite,
    job_key,
    part_key,
)
from robench.request import Part
from robench.results.bounds import check_bounds, known_bounds
from robench.results.parts import part_store
from robench.results.store import Store
from robench.results.stored_record import StoredRecord
from robench.seeding import own_stream
from robench.stand_ins.catalogue import foreign_stand_ins
from robench.threat_models import ThreatModel

_DEFAULTS = Settings()


class Listener(Protocol):
    """Is told how an evaluation gets on. Subclasses say what they want to hear of."""

    def job_started(self, model: str, attack: str, steps: int, cached: bool) -> None:
        """A job begins, or its record was found in the store."""
        return

    def advanced(self, steps: int) -> None:
        """Search steps of the current job were completed or became unnecessary."""
        return

    def job_finished(self, stored: StoredRecord) -> None:
        """A record is in the store."""
        return

    def model_finished(self, model: str, records: Sequence[StoredRecord]) -> None:
        """All jobs of a model are done."""
        return


class Silent(Listener):
    """A listener that says nothing."""


def evaluate_model(
    model: RobenchModel,
    dataset: Dataset,
    suite: Suite,
    *,
    store: Store,
    threat_model: ThreatModel | None = None,
    listener: Listener | None = None,
    settings: Settings = _DEFAULTS,
    examination: Examination | None = None,
    part: Part | None = None,
    only: str | None = None,
    prepared: PreparedModel | None = None,
) -> list[StoredRecord]:
    """Run every attack of a suite on one model, skipping what the store has.

    The model is moved to the settings' device. Entries of the suite for other norms than the threat
    model's, which is the model's own if it is None, are left out. At several radii the calls share
    one ``examination``. Of a ``part`` of the samples the records go to a store of its own
    (:mod:`robench.results.parts`), unless the record of all of them is there. ``only`` the attack of
    that name is run; ``prepared`` is what :func:`prepare_for` gave for the same arguments.

    Returns:
        One stored record for each attack, in the suite's order.

    Raises:
        UsageError: the suite has no attack for the norm.
        ModelError: outputs that cannot be evaluated; of a part, those of a model whose passes depend
            on the passes before them.
        StoreError: records cannot be written.
        ContradictionError: a sample was broken that the store's bounds verify. The record is kept.
    """
    threat = threat_model or model.summary.threat_model
    specs = suite.for_model(threat.family, model.outputs)
    if not specs:
        raise UsageError(f"suite {suite.name!r} has no attack for {threat.family}")
    job = _ModelJob(
        model,
        dataset,
        threat,
        specs,
        store,
        listener or Silent(),
        settings,
        examination,
        part,
        prepared,
    )
    records = []
    for spec in (spec for spec in specs if only in (None, spec.name)):
        records.append(job.run(spec))
        check_bounds(records[-1:], job.bounds)
    job.listener.model_finished(model.summary.name, records)
    return records


def prepare_for(
    model: RobenchModel,
    dataset: Dataset,
    attacks: Sequence[AttackSpec],
    threat_model: ThreatModel,
    settings: Settings,
    examination: Examination | None = None,
) -> PreparedModel:
    """What attacks on all samples start from; errors as of :func:`evaluate_model`."""
    with own_stream(settings.seed, settings.device):
        return prepare_model(model, dataset, threat_model, settings, attacks, examination)


def plan_model(
    model: RobenchModel,
    dataset: Dataset,
    suite: Suite,
    *,
    store: Store,
    threat_model: ThreatModel,
    settings: Settings = _DEFAULTS,
    examination: Examination | None = None,
    part: Part | None = None,
) -> ModelPlan:
    """What :func:`evaluate_model` would have to do, from a short measurement; nothing is written.

    Raises:
        ModelError: as that.
    """
    specs = suite.for_model(threat_model.family, model.outputs)
    job = _ModelJob(
        model, dataset, threat_model, specs, store, Silent(), settings, examination, part
    )
    stored = tuple(spec.name for spec in specs if job.is_stored(spec))
    memory, started = PeakMemory(settings.device), time.perf_counter()
    planner = Planner(job.prepared, memory)
    preparing = time.perf_counter() - started
    todo = [spec for spec in specs if spec.name not in stored]
    return planner.plan(todo, stored, preparing)


def code_from_outside(attack: AttackSpec, model: RobenchModel) -> dict[str, str]:
    """What else decides a job's numbers: code of other packages, and models that are searched in
    this one's place. Attack, metric or stand-in → version or hash."""
    return {**foreign_code(attack), **foreign_stand_ins(attack, model), **foreign_metrics()}


def key_of(
    model: RobenchModel,
    dataset: DatasetSpec,
    threat_model: ThreatModel,
    attack: AttackSpec,
    settings: Settings,
    foreign: Mapping[str, str] | None = None,
) -> str:
    """The key of a job's record; ``foreign`` is :func:`code_from_outside`, if it is known."""
    return job_key(
        model=model.summary.fingerprint,
        dataset=dataset,
        threat_model=threat_model,
        attack=attack,
        seed=settings.seed,
        precision=settings.precision,
        draws=asked_draws(model, settings.draws),
        foreign=code_from_outside(attack, model) if foreign is None else foreign,
    )


def kept_record(
    store: Store, key: str, *, adversarial: bool, trace: bool = False
) -> StoredRecord | None:
    """The store's record of a job, if it answers what is asked for: where ``adversarial`` inputs or a
    ``trace`` are wanted, one that has them; one that says by which slopes its model is known, and, of
    random outputs, of how many draws its verdicts are. A damaged one is set aside."""
    if not store.has(key):
        return None
    try:
        stored = store.read(key)
        record = stored.record
        wanting = record.slopes is None
        wanting = wanting or (record.repeated_draws is None and is_judged_by_draws(record.flags))
        wanting = wanting or (adversarial and not store.has_adversarial(key))
        wanting = wanting or (trace and not store.has_trace(key))
        return None if wanting else stored
    except CorruptRecordError as error:
        store.set_aside(key, str(error))
        return None


@dataclass(frozen=True)
class _ModelJob:
    """One model on one data set: what its attacks share is computed once, and only if needed."""

    model: RobenchModel
    dataset: Dataset
    threat_model: ThreatModel
    attacks: Sequence[AttackSpec]
    store: Store
    listener: Listener
    settings: Settings
    examination: Examination | None
    part: Part | None
    given: PreparedModel | None = None  # for all samples, where that is known

    @cached_property
    def prepared(self) -> PreparedModel:
        """What the attacks start from."""
        if (prepared := self.given) is None:
            about = (self.model, self.dataset, self.attacks, self.threat_model, self.settings)
            prepared = prepare_for(*about, self.examination)
        return prepared if self.part is None else part_of(prepared, self.part)

    @cached_property
    def bounds(self) -> list[Bounds]:
        """What the store knows that no attack can break of the model."""
        fingerprint = self.model.summary.fingerprint
        return [b for b in known_bounds(self.store) if b.model.fingerprint == fingerprint]

    def is_stored(self, spec: AttackSpec) -> bool:
        """Whether the record of one attack is there, of all samples or of this part of them."""
        key = key_of(self.model, self.dataset.spec(), self.threat_model, spec, self.settings)
        if self.part is None or self.store.has(key):
            return self.store.has(key)
        key = part_key(key, self.part.index, self.part.count)
        return part_store(self.store, self.part).has(key)

    def run(self, spec: AttackSpec) -> StoredRecord:
        """The record of one attack, from the store or made now."""
        data = self.dataset.spec()
        foreign = code_from_outside(spec, self.model)
        whole = key = key_of(self.model, data, self.threat_model, spec, self.settings, foreign)
        store = self.store
        wanted = {"adversarial": self.settings.save_adversarial, "trace": self.settings.trace}
        stored = kept_record(store, key, **wanted)
        if stored is None and self.part is not None:
            store = part_store(store, self.part)
            key = part_key(whole, self.part.index, self.part.count)
            stored = kept_record(store, key, **wanted)
        if stored is None:
            # Another process may be at this very job; then its record is worth waiting for.
            with store.claim(key, wait=float("inf")):
                stored = kept_record(store, key, **wanted)
                if stored is None:
                    # Of a model with random outputs the same seed gives the same record.
                    with own_stream(self.settings.seed, self.settings.device):
                        stored = self._make(store, key, whole, spec, foreign)
                    self.listener.job_finished(stored)
                    return stored
        # The same job may have been done under other names.
        of_all = data if stored.record.part is None else None
        stored = stored.shown_as(spec.name, self.model.summary, of_all)
        self.listener.job_started(self.model.summary.name, spec.name, 0, True)
        self.listener.job_finished(stored)
        return stored

    def _make(
        self, store: Store, key: str, whole: str, spec: AttackSpec, foreign: dict[str, str]
    ) -> StoredRecord:
        prepared, known = self.prepared, store.has(key)
        # Done again for one of them, a record does not lose the other.
        adversarial = self.settings.save_adversarial or (known and store.has_adversarial(key))
        traced = self.settings.trace or (known and store.has_trace(key))
        memory = PeakMemory(self.settings.device)
        before = buffer_fingerprint(self.model)
        progress = store.progress(key)
        shape = self.dataset.input_shape
        adv_inputs = room_for(len(prepared), shape, lambda: progress.row_file(len(prepared), shape))
        saved = load_snapshot(progress.load())
        if isinstance(adv_inputs, FileInputs) and not adv_inputs.file.resumed:
            saved = None  # a snapshot without its inputs is of no use
        if saved and not may_go_on(prepared, saved["margins"], Slopes(**saved["slopes"])):
            saved = None
        seconds_before = float(saved["seconds"]) if saved else 0.0
        every = self.settings.snapshot_seconds
        told = told_margins(prepared), prepared.given.slopes().model_dump()
        saver = Saver(progress.save, every, seconds_before, *told)
        cascade = Cascade(
            spec,
            prepared,
            progress=self.listener.advanced,
            save=saver,
            trace=progress.trace() if traced else None,
        )
        name = self.model.summary.name
        self.listener.job_started(name, spec.name, cascade.total_steps, False)
        try:
            attacked = cascade.run(adv_inputs, saved["cascade"] if saved else None)
        except KeyboardInterrupt:
            saver.save_now()
            raise
        seconds = saver.seconds
        flags = [*self.model.remarks, *prepared.flags, *cascade.flags(attacked)]
        if buffer_fingerprint(self.model) != before:
            flags.append(
                Flag(
                    name="buffers_changed",
                    severity="severe",
                    evidence="parameters or buffers differ after the attack: the model changes "
                    "while it is evaluated",
                )
            )
        builder = RecordBuilder(spec, prepared, attacked)
        record = builder.record(key, foreign, flags, seconds, memory.mib())
        samples = builder.samples
        if self.part is None:
            arrays = builder.panel()
        else:
            record = with_part(record, builder, self.part, whole)
            arrays = builder.panel(PANEL_OF_PART) | arrays_for_merging(builder, self.part)
        if known:
            # Done again for its inputs, its trace or its slopes; what it found, at what cost, is known.
            earlier = store.read(key)
            if earlier.same_outcomes(samples):
                slopes = earlier.record.slopes or record.slopes
                now = {"slopes": slopes, "repeated_draws": record.repeated_draws}
                record = earlier.record.model_copy(update=now)
                samples = earlier.rows
        stored = store.write(
            record,
            samples,
            adversarial=builder.adversarial() if adversarial else None,
            arrays=arrays,
            trace=cascade.write_trace if traced else None,
        )
        progress.clear()
        return stored
