"""Validation: is a suite's number for a model worth what it says?

The suite's records, then what shows whether gradients are masked (free diagnoses from the records,
tests on a few samples), then the countermeasures that this asks for, as one ordinary record judged
like any other, and the verdict that follows. Every part is stored, so that an interrupted
validation goes on where it stopped; see :mod:`robench.results.validations`.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np

from robench import seeding
from robench.datasets import Dataset
from robench.devices import device_of, single_precision
from robench.doctor.subject import Subject
from robench.errors import AttackError, StoreError, UsageError
from robench.evaluation.as_given import as_given
from robench.evaluation.prepared_model import Settings
from robench.evaluation.runner import Listener, evaluate_model
from robench.models.wrapper import RobenchModel
from robench.preparation import Planned, Prepared
from robench.probes import FirstState, undisturbed
from robench.records import (
    Diagnosis,
    Outcome,
    Suite,
    Trial,
    Validation,
    canonical_hash,
    validation_key,
)
from robench.registry import identity_of
from robench.reporting.model_results import ModelResult, collect
from robench.request import Request
from robench.results import Store, StoredRecord
from robench.results.validations import Validations, judgement
from robench.seeding import own_stream
from robench.stand_ins.catalogue import STAND_INS
from robench.validity import countermeasures
from robench.validity.catalogue import DIAGNOSES, MOST, diagnose
from robench.validity.countermeasures import Chosen
from robench.validity.free_diagnoses import free_diagnoses

log = logging.getLogger("robench.validity")


@single_precision()
def validate(prepared: Prepared, listener: Listener | None = None) -> list[Validation]:
    """Validate every model of a prepared request, running what the results folder lacks.

    Returns:
        One validation a model and radius, in order.

    Raises:
        UsageError: the request has targets: a model is validated against any misclassification.
        RobenchError: as :func:`robench.evaluation.runner.evaluate_model`.
    """
    check_goal(prepared.request)
    found = []
    with ExitStack() as stack:
        folder = prepared.request.results or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="robench-")
        )
        for planned in prepared.planned:
            home = device_of(planned.model)
            model = planned.model.to(prepared.device)
            job = _Job(planned._replace(model=model), prepared, Store(folder), listener)
            found.append(job.run())
            model.to(home)
    return found


def check_goal(request: Request) -> None:
    """Refuse targets.

    Raises:
        UsageError: the request has some.
    """
    if request.goal != "untargeted":
        raise UsageError(
            "a model is validated against any misclassification, not against targets",
            hint="Leave out --goal and --targets",
        )


def protocol() -> str:
    """The hash of all tests and countermeasures that there are, code from outside included."""
    tests = [
        [name, test.samples, identity_of(test.function)]
        for name, test in ((name, DIAGNOSES[name]) for name in DIAGNOSES)
    ]
    content: dict[str, Any] = {"tests": tests, "countermeasures": countermeasures.identity()}
    # What was not there to be tried may be there now.
    content |= {"stand_ins": sorted(STAND_INS)}
    return canonical_hash(content)


def subject_of(
    model: RobenchModel, dataset: Dataset, result: ModelResult, settings: Settings
) -> Subject:
    """The samples that tests look at: of those that are classified correctly the first few, in an
    order that the seed and their ids decide."""
    correct = list(result.sample_ids[result.clean_correct])
    keys = seeding.derive(seeding.sample_keys(settings.seed, correct), seeding.tag("validation"))
    place = {sample: row for row, sample in enumerate(dataset.sample_ids)}
    rows = [place[correct[i]] for i in keys.argsort()[:MOST].tolist()]
    inputs = dataset.batch(rows).to(settings.device)
    return Subject(model, inputs, dataset.labels[rows].to(settings.device))


@dataclass(frozen=True)
class _Job:
    """One model under one threat model."""

    planned: Planned
    prepared: Prepared
    store: Store
    listener: Listener | None

    @property
    def settings(self) -> Settings:
        return self.prepared.settings

    @cached_property
    def base(self) -> list[StoredRecord]:
        """The suite's records, from the store or made now."""
        self._say_what_is_another_model()
        return self._records(self.prepared.suite)

    @cached_property
    def result(self) -> ModelResult:
        """The same together; whether each sample is robust."""
        (result,) = collect(self.base)
        return result

    @cached_property
    def transfers(self) -> list[StoredRecord]:
        """What the store has of inputs that the suite's attacks made for other models."""
        record = self.base[0].record
        attacks = [stored.record.attack.identity for stored in self.base]
        about = record.model.fingerprint, record.dataset.fingerprint
        found = []
        for key in self.store.keys_naming(*about, '"made_for": {'):
            with suppress(StoreError):  # what is damaged is told by whoever reads it all
                found.append(self.store.read(key))
        return [
            stored
            for stored in found
            if (source := stored.record.made_for) is not None
            and source.attack.identity in attacks
            and (stored.record.model.fingerprint, stored.record.dataset.fingerprint) == about
            and stored.record.threat_model == record.threat_model
            and stored.record.seed == record.seed
        ]

    def run(self) -> Validation:
        """The validation, from the store or made now."""
        model = self.planned.model.summary
        base = tuple(sorted(stored.record.key for stored in self.base))
        transfers = tuple(sorted(stored.record.key for stored in self.transfers))
        told = protocol()
        key = validation_key(model.fingerprint, base, told, transfers)
        validations = Validations(self.store)
        with self.store.claim(key, wait=float("inf")):
            known = validations.find(key)
            if known is not None:
                # The same network may have been validated under another name.
                return known.model_copy(update={"model": model})
            started = time.perf_counter()
            diagnoses = self._diagnoses()
            n, robust = self.result.n, int(self.result.robust.sum())
            trials = self._trials(diagnoses) if robust else []  # below 0 there is nothing
            finds = sum(trial.finds for trial in trials)
            judged = judgement(diagnoses, trials, n=n, robust=robust)
            made = Validation(
                key=key,
                model=model,
                dataset=self.planned.dataset.spec(),
                threat_model=self.planned.threat,
                suite=self.prepared.suite.name,
                seed=self.settings.seed,
                precision=self.settings.precision,
                base=base,
                transfers=transfers,
                protocol=told,
                robust_acc=100 * robust / n,
                best_known_acc=100 * (robust - finds) / n,
                lowered_by=100 * finds / n,
                verdict=judged.verdict,
                reasons=judged.reasons,
                diagnoses=tuple(diagnoses),
                trials=tuple(trials),
                seconds=time.perf_counter() - started,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            validations.write(made)
            return made

    def _records(self, suite: Suite) -> list[StoredRecord]:
        planned = self.planned
        return evaluate_model(
            planned.model,
            planned.dataset,
            suite,
            store=self.store,
            threat_model=planned.threat,
            listener=self.listener,
            settings=self.settings,
        )

    def _say_what_is_another_model(self) -> None:
        """Records under this model's name that are of another network are used for nothing."""
        model = self.planned.model.summary
        others = {
            stored.record.model.fingerprint
            for stored in self.store.records()
            if stored.record.model.id == model.id
        } - {model.fingerprint}
        if others:
            log.warning(
                "left out: records of %s in %s are of another network than the one that it names "
                "now (fingerprint %s, now %s)",
                model.id,
                self.store.folder,
                ", ".join(sorted(other[:12] for other in others)),
                model.fingerprint[:12],
            )

    def _diagnoses(self) -> list[Diagnosis]:
        settings, model = self.settings, self.planned.model
        flags = [flag.name for stored in self.base for flag in stored.record.flags]
        model = as_given(model, model.first or FirstState.of(model.network), flags)
        subject = subject_of(model, self.planned.dataset, self.result, settings)
        with own_stream(settings.seed, settings.device), undisturbed(model):
            tested = diagnose(subject, self.planned.threat, settings.seed)
        return [*free_diagnoses(self.base, self.transfers), *tested]

    def _trials(self, diagnoses: Sequence[Diagnosis]) -> list[Trial]:
        model, threat = self.planned.model, self.planned.threat
        chosen = countermeasures.choose(diagnoses, model, threat)
        spec = countermeasures.cascade(chosen)
        stored, problem = None, None
        if spec is not None:
            suite = Suite(name=countermeasures.CASCADE, attacks=(spec,))
            try:
                (stored,) = self._records(suite)
            except AttackError as error:  # no stage of it can be run on this model
                problem = str(error)
        return [_trial(item, stored, problem, self.result) for item in chosen]


def _trial(
    chosen: Chosen, stored: StoredRecord | None, problem: str | None, result: ModelResult
) -> Trial:
    """What a countermeasure's stages found that the suite had not."""
    told = {"countermeasure": chosen.name, "asked_by": chosen.asked_by}
    if not chosen.stages or stored is None:
        return Trial(**told, tried=False, message=chosen.problem or problem)
    names = {stage.name for stage in chosen.stages}
    stages = [stage for stage in stored.record.stages if stage.name in names]
    skipped = list(dict.fromkeys(stage.skipped for stage in stages if stage.skipped))
    if stages and all(stage.skipped for stage in stages):
        return Trial(**told, tried=False, key=stored.record.key, message="; ".join(skipped))
    table = stored.table.set_index("sample_id").loc[list(result.sample_ids)]
    broken = (table["outcome"] == Outcome.BROKEN.value) & table["broken_by"].isin(names)
    finds = int((np.asarray(broken, dtype=bool) & result.robust).sum())
    return Trial(
        **told,
        tried=True,
        key=stored.record.key,
        finds=finds,
        lowered_by=100 * finds / result.n,
        message="; ".join([*skipped, *([chosen.problem] if chosen.problem else [])]) or None,
    )
