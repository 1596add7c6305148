"""Jobs on a cluster: each part of each job's samples is attacked by whoever is free.

The process that asks, the driver, sends models and samples once, gets the files of parts back, joins
them as :mod:`robench.evaluation.merging` does, and writes all records: the others need no disk in
common with it. What cannot be divided goes as a whole.
"""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from robench.attacks import build_attack
from robench.attacks.base import BatchAttack
from robench.datasets import Dataset
from robench.errors import ModelError, RobenchError, StoreError, UsageError, one_line
from robench.evaluation.expected_passes import steps_a_sample
from robench.evaluation.merging import merge
from robench.evaluation.parts import IndivisibleError, check_divisible
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import (
    Listener,
    Silent,
    kept_record,
    key_of,
)
from robench.evaluation.sent_jobs import Order, SentDataset, blocks_of, work
from robench.execution import Call, Progress, Save, Task
from robench.execution.ray_cluster import RayCluster
from robench.execution.scheduling import largest_first
from robench.files import atomic_write
from robench.models.loading import is_unique
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Suite, part_key
from robench.request import Part
from robench.results.bounds import check_bounds, known_bounds
from robench.results.parts import divisions, part_store
from robench.results.store import Store
from robench.results.stored_record import StoredRecord
from robench.threat_models import ThreatModel

_LEAST = 32
"""Samples in a part, where nobody says how many parts there are"""


@dataclass(eq=False)
class _Job:
    """One attack on one model."""

    model: RobenchModel
    threat_model: ThreatModel
    dataset: Dataset
    spec: AttackSpec
    key: str
    count: int = 0
    """Parts; 0: it goes as a whole"""
    failure: RobenchError | None = None
    whole_instead: bool = False
    """Parts would not make the whole"""
    left: int = 0
    """Tasks that are not done"""
    stored: StoredRecord | None = None

    @property
    def steps(self) -> int:
        """If all samples survive."""
        stages = self.spec.for_outputs(self.model.outputs)
        attacks = [build_attack(stage, self.threat_model) for stage in stages]
        each = (
            1 if isinstance(attack, BatchAttack) else steps_a_sample(attack, self.model.num_classes)
            for attack in attacks
        )
        return len(self.dataset) * sum(each)

    def __str__(self) -> str:
        return f"{self.spec.name} on {self.model.summary.name} under {self.threat_model}"


About = tuple[_Job, Part | None]


@dataclass
class Distribution:
    """The jobs of a request, on a cluster."""

    cluster: RayCluster
    store: Store
    suite: Suite
    settings: Settings
    listener: Listener = field(default_factory=Silent)
    shards: int | None = None
    """Parts of a job; None: as many as keep the cluster busy"""

    def __post_init__(self) -> None:
        self._run = uuid.uuid4().hex
        self._sent: dict[int, tuple[Any, ...]] = {}
        self._lock = threading.Lock()

    def run(
        self, planned: Sequence[tuple[RobenchModel, ThreatModel, Dataset]]
    ) -> list[StoredRecord]:
        """All records of these models under these threat models on these samples, model by model.

        What is in the store, parts included, is not done again. A job that fails does not keep the
        others from being done.

        Raises:
            RobenchError: of the first job that failed; a model that cannot be sent.
        """
        jobs = [[self._job(*item, spec) for spec in self._specs(item)] for item in planned]
        todo = [job for of_model in jobs for job in of_model if not self._take_kept(job)]
        steps = sum(job.steps for job in todo)
        for job in todo:
            job.count = self._count(job, job.steps / steps if steps else 1.0)
        tasks = [
            Task((job, part), size=max(job.steps, 1) / (job.count or 1))
            for job in todo
            for part in self._missing(job)
        ]
        tasks = largest_first(tasks, lambda task: task.size)
        for task in tasks:
            task.about[0].left += 1
        for job in todo:
            self._send(job)
            self.listener.job_started(job.model.summary.name, job.spec.name, job.steps, False)
            if job.left == 0:  # all its parts are there
                self._finish(job)
        results = self.cluster.run(tasks, self._call, self.listener.advanced, lambda _: None)
        with closing(results):
            for task, _ in results:
                job, _ = task.about
                job.left -= 1
                if job.left == 0:
                    self._finish(job)
        for job in todo:
            if job.failure is not None:
                raise job.failure
        found = [[job.stored for job in of_model if job.stored] for of_model in jobs]
        for (model, _, _), records in zip(planned, found, strict=True):
            self.listener.model_finished(model.summary.name, records)
        return [stored for records in found for stored in records]

    # --- jobs ------------------------------------------------------------------------------

    def _specs(self, item: tuple[RobenchModel, ThreatModel, Dataset]) -> tuple[AttackSpec, ...]:
        model, threat, _ = item
        return self.suite.for_model(threat.family, model.outputs)

    def _job(
        self, model: RobenchModel, threat: ThreatModel, dataset: Dataset, spec: AttackSpec
    ) -> _Job:
        key = key_of(model, dataset.spec(), threat, spec, self.settings)
        return _Job(model, threat, dataset, spec, key)

    def _count(self, job: _Job, share: float) -> int:
        """Of its parts; it is such a share of all the work."""
        begun = [d for d in divisions([self.store]) if d.whole == job.key]
        n = len(job.dataset)
        count = self.shards or self.cluster.parts(n, share, _LEAST)
        if begun and self.shards is None:
            count = max(begun, key=lambda d: len(d.parts) / d.count).count
        try:
            check_divisible(job.spec, job.threat_model, n, Part(1, count))
        except UsageError:
            return 0
        return 0 if count == 1 or is_unique(job.model) else count

    def _take_kept(self, job: _Job) -> bool:
        """Whether the store has its record."""
        kept = kept_record(self.store, job.key, adversarial=self.settings.save_adversarial)
        if kept is None:
            return False
        # The same job may have been done under other names.
        job.stored = kept.shown_as(job.spec.name, job.model.summary, job.dataset.spec())
        self.listener.job_started(job.model.summary.name, job.spec.name, 0, True)
        self.listener.job_finished(job.stored)
        return True

    def _missing(self, job: _Job) -> list[Part | None]:
        if job.count == 0:
            return [None]
        parts = [Part(index, job.count) for index in range(1, job.count + 1)]
        return [part for part in parts if self._kept(job, part) is None]

    def _kept(self, job: _Job, part: Part | None) -> StoredRecord | None:
        store, key = self._place(job, part)
        return kept_record(store, key, adversarial=self.settings.save_adversarial)

    def _place(self, job: _Job, part: Part | None) -> tuple[Store, str]:
        if part is None:
            return self.store, job.key
        return part_store(self.store, part), part_key(job.key, part.index, part.count)

    def _finish(self, job: _Job) -> None:
        """All its tasks are done: join its parts."""
        if job.failure is not None:
            return
        try:
            if job.count == 0 or job.whole_instead:
                job.stored = self.store.read(job.key)
            else:
                found = divisions([self.store])
                (division,) = [d for d in found if (d.whole, d.count) == (job.key, job.count)]
                job.stored = merge(division, self.store)
                for part in division.parts:
                    part.store.delete(part.stored.record.key)
            check_bounds([job.stored], known_bounds(self.store))
        except RobenchError as error:
            job.failure = error
            return
        self.listener.job_finished(job.stored)

    # --- calls -----------------------------------------------------------------------------

    def _send(self, job: _Job) -> None:
        """Its model and samples, once."""
        model, dataset = job.model, job.dataset
        if id(dataset) not in self._sent:
            sent = SentDataset(dataset)
            about = self.cluster.put(sent)
            blocks = map(self.cluster.put, blocks_of(dataset, sent.block))
            self._sent[id(dataset)] = about, *blocks
        if id(model) not in self._sent:
            try:
                self._sent[id(model)] = (self.cluster.put(model),)
            except Exception as error:  # whatever a model's own code may raise
                raise ModelError(
                    f"it cannot be sent to other processes: {one_line(error)}",
                    where=model.summary.id,
                    hint="Leave out what cannot be pickled, or run it without --executor ray",
                ) from error

    def _call(self, task: Task[About], _: int) -> Call:
        job, part = task.about

        def call(progress: Progress, save: Save) -> dict[str, Any]:
            for what in (part, None):
                if job.failure is not None or (job.whole_instead and what is not None):
                    break
                try:
                    self._do(job, what, progress, save)
                    break
                except IndivisibleError:
                    with self._lock:
                        if job.whole_instead:
                            break
                        job.whole_instead = True
                except RobenchError as error:
                    job.failure = job.failure or error
            return {}

        return call

    def _do(self, job: _Job, part: Part | None, progress: Progress, save: Save) -> None:
        if self._kept(job, part) is not None:
            return  # another process may have done it meanwhile
        token = f"{self._run} {id(job.model)} {id(job.dataset)} {job.threat_model}"
        settings = replace(self.settings, snapshot_seconds=math.inf)
        order = Order(
            token, self.suite, job.spec.name, job.threat_model, settings, self.cluster.device, part
        )
        arguments = (order, *self._sent[id(job.model)], *self._sent[id(job.dataset)])
        told = f"{job}, {part or 'all samples'}"
        files: Mapping[str, bytes] = self.cluster.call(work, arguments, progress, save, told)
        if self._kept(job, part) is not None:
            return  # a second worker, or another process, was quicker
        store, key = self._place(job, part)
        own = [name for name in files if name.startswith(f"{key}.")]
        # The JSON last: it makes a record of the rest.
        for name in sorted(own, key=lambda name: name.endswith(".json")):
            atomic_write(store.path_of(key).parent / name, files[name])
        if not store.has(key):
            raise StoreError(
                "what came back has another key: packages that attacks or metrics come from differ",
                where=told,
                hint="Install the same versions everywhere",
            )
