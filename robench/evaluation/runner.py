"""From a plan to records: models × attacks on one data set, each job done once and stored.

card → model → attack proposes → adjudication decides → record. What is already in the store is
read from there; an interrupted job goes on from its last snapshot.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from robench.attacks.catalogue import foreign_code
from robench.datasets import Dataset
from robench.errors import CorruptRecordError, UsageError
from robench.evaluation.adversarial_inputs import FileInputs, room_for
from robench.evaluation.cascade import Cascade
from robench.evaluation.environment import PeakMemory
from robench.evaluation.prepared_model import PreparedModel, prepare_model
from robench.evaluation.record_builder import RecordBuilder
from robench.evaluation.settings import Settings
from robench.metric_catalogue import foreign_metrics
from robench.models.wrapper import RobenchModel, buffer_fingerprint
from robench.records import AttackSpec, DatasetSpec, Flag, Suite, job_key
from robench.results.store import Store
from robench.results.stored_record import StoredRecord
from robench.threat_models import ThreatModel

_DEFAULTS = Settings()
_SNAPSHOT_FORMAT = 2


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


class Saver:
    """Keeps a snapshot of an unfinished job whenever enough time has passed since the last one.

    Args:
        keep: stores the bytes.
        interval: seconds between snapshots.
        seconds_before: time that earlier runs of the job took.
    """

    def __init__(
        self, keep: Callable[[bytes], None], interval: float, seconds_before: float = 0.0
    ) -> None:
        self._keep = keep
        self._interval = interval
        self._started = self._last = time.perf_counter()
        self._seconds_before = seconds_before
        self._latest: Callable[[], dict[str, Any]] | None = None

    def __call__(self, snapshot: Callable[[], dict[str, Any]]) -> None:
        """Called at every point where a snapshot could be taken."""
        self._latest = snapshot
        if time.perf_counter() - self._last >= self._interval:
            self.save_now()

    @property
    def seconds(self) -> float:
        """Time that the job has taken so far, earlier runs included."""
        return self._seconds_before + time.perf_counter() - self._started

    def save_now(self) -> None:
        """Keep the latest snapshot, if there has been one: it is of the last whole step."""
        if self._latest is None:
            return
        content = {"cascade": self._latest(), "seconds": self.seconds, "format": _SNAPSHOT_FORMAT}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self._keep(buffer.getvalue())
        self._last = time.perf_counter()


def load_snapshot(content: bytes | None) -> dict[str, Any] | None:
    """What :class:`Saver` kept: ``cascade`` and ``seconds``; None if it is of no use any more."""
    if content is None:
        return None
    try:
        loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError):
        return None  # of another version; the job starts again
    return loaded if loaded.get("format") == _SNAPSHOT_FORMAT else None


def evaluate_model(
    model: RobenchModel,
    dataset: Dataset,
    suite: Suite,
    *,
    store: Store,
    threat_model: ThreatModel | None = None,
    listener: Listener | None = None,
    settings: Settings = _DEFAULTS,
) -> list[StoredRecord]:
    """Run every attack of a suite on one model, skipping what the store has.

    Args:
        model: the model; moved to the device.
        dataset: the samples, inputs in [0, 1].
        suite: the attacks; entries for other norms are left out.
        store: where records are kept.
        threat_model: the ball; None: the model's own.
        listener: is told about progress.
        settings: how to run it, and the seed.

    Returns:
        One stored record for each attack, in the suite's order.

    Raises:
        UsageError: the model and the data set have different numbers of classes, or the suite has
            no attack for the norm.
        ModelError: outputs that cannot be evaluated.
        StoreError: records cannot be written.
    """
    threat = threat_model or model.summary.threat_model
    specs = suite.for_model(threat.norm, model.outputs)
    if not specs:
        raise UsageError(f"suite {suite.name!r} has no attack for {threat.norm}")
    if model.num_classes != dataset.num_classes:
        raise UsageError(
            f"the model has {model.num_classes} classes, {dataset.name} has {dataset.num_classes}",
            where=model.summary.id,
        )
    job = _ModelJob(model, dataset, threat, store, listener or Silent(), settings)
    records = [job.run(spec, specs) for spec in specs]
    job.listener.model_finished(model.summary.name, records)
    return records


def code_from_outside(attack: AttackSpec) -> dict[str, str]:
    """Code of other packages that decides a job's numbers: attack or metric → version or hash."""
    return {**foreign_code(attack), **foreign_metrics()}


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
        foreign=code_from_outside(attack) if foreign is None else foreign,
    )


class _ModelJob:
    """One model on one data set: what its attacks share is computed once, and only if needed."""

    def __init__(
        self,
        model: RobenchModel,
        dataset: Dataset,
        threat_model: ThreatModel,
        store: Store,
        listener: Listener,
        settings: Settings,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.threat_model = threat_model
        self.store = store
        self.listener = listener
        self.settings = settings
        self.spec: DatasetSpec = dataset.spec()
        self._prepared: PreparedModel | None = None

    def run(self, spec: AttackSpec, plan: Sequence[AttackSpec]) -> StoredRecord:
        """The record of one attack, from the store or made now."""
        name = self.model.summary.name
        foreign = code_from_outside(spec)
        key = key_of(self.model, self.spec, self.threat_model, spec, self.settings, foreign)
        stored = self._from_store(key)
        if stored is None:
            # Another process may be at this very job; then its record is worth waiting for.
            with self.store.claim(key, wait=float("inf")):
                stored = self._from_store(key)
                if stored is None:
                    stored = self._make(key, spec, plan, foreign)
                    self.listener.job_finished(stored)
                    return stored
        # The same job may have been done under other names.
        stored = stored.shown_as(spec.name, self.model.summary, self.spec)
        self.listener.job_started(name, spec.name, 0, True)
        self.listener.job_finished(stored)
        return stored

    def _from_store(self, key: str) -> StoredRecord | None:
        """A record that answers what was asked for: with adversarial inputs, if they are wanted."""
        if not self.store.has(key):
            return None
        try:
            stored = self.store.read(key)
            wanting = self.settings.save_adversarial and not self.store.has_adversarial(key)
            return None if wanting else stored
        except CorruptRecordError as error:
            self.store.set_aside(key, str(error))
            return None

    def _prepare(self, plan: Sequence[AttackSpec]) -> PreparedModel:
        if self._prepared is None:
            self._prepared = prepare_model(
                self.model, self.dataset, self.threat_model, self.settings, plan
            )
        return self._prepared

    def _make(
        self, key: str, spec: AttackSpec, plan: Sequence[AttackSpec], foreign: dict[str, str]
    ) -> StoredRecord:
        prepared = self._prepare(plan)
        memory = PeakMemory(self.settings.device)
        before = buffer_fingerprint(self.model)
        progress = self.store.progress(key)
        shape = self.dataset.input_shape
        adv_inputs = room_for(len(prepared), shape, lambda: progress.row_file(len(prepared), shape))
        saved = load_snapshot(progress.load())
        if isinstance(adv_inputs, FileInputs) and not adv_inputs.file.resumed:
            saved = None  # a snapshot without its inputs is of no use
        seconds_before = float(saved["seconds"]) if saved else 0.0
        saver = Saver(progress.save, self.settings.snapshot_seconds, seconds_before)
        cascade = Cascade(
            spec,
            self.model,
            self.threat_model,
            prepared.models,
            prepared.adjudicator,
            batch_size=prepared.batch_size,
            shard_size=prepared.shard_size,
            workers=prepared.workers,
            seed=self.settings.seed,
            progress=self.listener.advanced,
            save=saver,
        )
        steps = cascade.total_steps(len(prepared.rows), self.model.num_classes)
        self.listener.job_started(self.model.summary.name, spec.name, steps, False)
        try:
            snapshot = saved["cascade"] if saved else None
            attacked = cascade.run(prepared, adv_inputs, snapshot)
        except KeyboardInterrupt:
            saver.save_now()
            raise
        seconds = saver.seconds
        flags = [*prepared.flags, *cascade.flags(attacked, len(self.dataset))]
        if buffer_fingerprint(self.model) != before:
            flags.append(
                Flag(
                    name="buffers_changed",
                    severity="severe",
                    evidence="parameters or buffers differ after the attack: the model changes "
                    "while it is evaluated",
                )
            )
        builder = RecordBuilder(self.model, self.spec, self.threat_model, spec, prepared, attacked)
        record = builder.record(key, self.settings, foreign, flags, seconds, memory.mib())
        samples = builder.samples()
        if self.store.has(key):
            # Done again for its adversarial inputs; what it found, and at what cost, is known.
            earlier = self.store.read(key)
            if earlier.same_outcomes(samples):
                record, samples = earlier.record, earlier.samples
        stored = self.store.write(
            record,
            samples,
            adversarial=builder.adversarial() if self.settings.save_adversarial else None,
            arrays=builder.panel(),
        )
        progress.clear()
        return stored
