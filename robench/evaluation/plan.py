"""What jobs are going to take, from a short measurement: passes and time.

Some samples are attacked with PGD and APGD to see how many stand. Of every stage a few steps are timed, on
samples that stand, as many at a time as the job will have; the steps to come are those of the samples
that are expected to be left. Nothing is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from robench.acceleration.timing import threads_of, tiled
from robench.attacks.base import BatchAttack
from robench.attacks.suites import load_suite
from robench.attacks.trials import Trials
from robench.errors import AttackError
from robench.evaluation.cascade import Cascade
from robench.evaluation.cascade_state import StageRun
from robench.evaluation.environment import PeakMemory
from robench.evaluation.expected_passes import steps_a_sample
from robench.evaluation.parts import part_rows, some_of
from robench.evaluation.prepared_model import PreparedModel
from robench.evaluation.search import Search
from robench.records import AttackSpec
from robench.request import Part
from robench.seeding import own_stream

_PILOT_SAMPLES = 64
_PILOT_STEPS = 20
_PILOT = AttackSpec(
    name="pilot",
    stages=(
        AttackSpec(name="pgd", attack="pgd", params={"steps": _PILOT_STEPS, "loss": "margin"}),
        AttackSpec(
            name="apgd-t",
            attack="apgd",
            params={"loss": "dlr-targeted", "steps": _PILOT_STEPS, "targets": 3},
        ),
    ),
)
_FEWEST_STEPS, _SECONDS = 4, 0.8
"""Of a stage that is timed, at least"""
_STRETCHES_SECONDS = 5.0
"""The same, where the cost of steps changes in the course of a search"""


@dataclass(frozen=True)
class StagePlan:
    """One stage of a job; NaN where it cannot be told."""

    name: str
    samples: float
    """Expected to be left for it"""
    passes: float
    """Forward and backward"""
    seconds: float
    """With as many workers as the job has"""


@dataclass(frozen=True)
class JobPlan:
    """One attack on one model."""

    attack: str
    stages: tuple[StagePlan, ...]
    metrics_seconds: float

    @property
    def passes(self) -> float:
        """Of all stages."""
        return sum(stage.passes for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Search and metrics."""
        return sum(stage.seconds for stage in self.stages) + self.metrics_seconds


@dataclass(frozen=True)
class ModelPlan:
    """All jobs of one model under one threat model."""

    model: str
    threat_model: str
    n: int
    attacked: int
    """Those that are classified correctly"""
    workers: int
    preparing_seconds: float
    """Clean passes, the doctor's look, choosing what searches run on: in each shard anew"""
    stored: tuple[str, ...]
    """Attacks whose records are there"""
    jobs: tuple[JobPlan, ...]
    reference_seconds: float
    """Of AutoAttack as its reference runs it: ``aa-standard``, where no search ends before its last
    step"""
    peak_memory_mib: float | None
    """Of the measurement, as :class:`robench.evaluation.environment.PeakMemory` has it"""

    def seconds(self, shards: int = 1) -> float:
        """Of everything, in each of so many shards."""
        shared = sum(job.seconds for job in self.jobs) / shards
        return (self.preparing_seconds if self.jobs else 0.0) + shared


class Planner:
    """Plans the jobs of one model."""

    def __init__(self, prepared: PreparedModel, memory: PeakMemory) -> None:
        self.prepared = prepared
        self.memory = memory
        count = -(-len(prepared.dataset) // _PILOT_SAMPLES)
        rows = part_rows(prepared.dataset.sample_ids, Part(1, count))
        self.few = some_of(prepared, rows)
        self._rates: dict[tuple[str, int], tuple[float, float]] = {}

    def plan(
        self, specs: Sequence[AttackSpec], stored: tuple[str, ...], preparing: float
    ) -> ModelPlan:
        """Of these attacks; those of other names are ``stored``, and it took so long to prepare."""
        prepared = self.prepared
        with own_stream(prepared.settings.seed, prepared.settings.device):
            jobs = tuple(self._job(spec) for spec in specs)
            reference = self._reference()
        return ModelPlan(
            model=prepared.model.summary.name,
            threat_model=str(prepared.threat_model),
            n=len(prepared.dataset),
            attacked=len(prepared.rows),
            workers=prepared.workers,
            preparing_seconds=preparing,
            stored=stored,
            jobs=jobs,
            reference_seconds=reference,
            peak_memory_mib=self.memory.mib(),
        )

    @cached_property
    def _pilot(self) -> tuple[float, float, Tensor]:
        """Share of the samples that stand, share of a search's steps that one which falls takes, and
        the positions that stand among the few, or all of these if none does."""
        few = self.few
        everyone = torch.arange(len(few))
        if len(few) == 0:
            return 1.0, 1.0, everyone
        try:
            state = Cascade(_PILOT, few).run(torch.zeros(len(few), *few.dataset.input_shape))
        except Exception:  # A model may refuse gradients, or more.
            return 1.0, 1.0, everyone
        standing, fallen = state.survivors(), state.stage == 0
        steps = state.forwards[fallen].double() / _PILOT_STEPS
        early = float(steps.mean().clamp(max=1)) if len(steps) else 1.0
        return len(standing) / len(few), early, standing if len(standing) else everyone

    @cached_property
    def _metrics_seconds(self) -> float:
        few = self.few
        if len(few.rows) == 0:
            return 0.0
        inputs = few.dataset.batch(few.rows)
        few.metrics.values(inputs)  # what concerns the clean inputs is done once for all jobs
        started = time.perf_counter()
        few.metrics.values(inputs)
        return (time.perf_counter() - started) * len(self.prepared.rows) / len(few.rows)

    def _job(self, spec: AttackSpec) -> JobPlan:
        cascade = Cascade(spec, self.few)
        stages = tuple(self._stage(cascade, number) for number in range(len(cascade.stages)))
        return JobPlan(spec.name, stages, self._metrics_seconds)

    def _reference(self) -> float:
        if self.prepared.threat_model.corrupted is not None:
            return math.nan
        norm = self.prepared.threat_model.norm
        (spec,) = load_suite("aa-standard").for_norm(norm)
        cascade, every = Cascade(spec, self.few), len(self.prepared)
        seconds = 0.0
        for number, attack in enumerate(cascade.attacks):
            if isinstance(attack, BatchAttack | Trials):
                continue
            steps = steps_a_sample(attack, self.prepared.model.num_classes)
            samples = every if number == 0 else self._pilot[0] * every
            searches = samples * steps / attack.most_steps()
            a_step, _ = self._rate(cascade, number, searches)
            seconds += samples * steps * a_step / cascade.workers
        return seconds

    def _stage(self, cascade: Cascade, number: int) -> StagePlan:
        attack, audit = cascade.attacks[number], cascade.spec.audit
        alive, early, _ = self._pilot
        every = len(self.prepared)
        standing = alive * every
        if audit is not None and number >= audit.first_stage:
            standing = float(audit.sample_size(round(standing)))
        # All but a few of those that fall, fall in the first stage, in their first search.
        falling = 0.0 if number else (1 - alive) * every
        name = cascade.stages[number].name
        if isinstance(attack, BatchAttack):
            return StagePlan(name, standing + falling, math.nan, math.nan)
        if isinstance(attack, Trials):
            return StagePlan(name, every, float(every * len(attack.names)), math.nan)
        searches = steps_a_sample(attack, self.prepared.model.num_classes) / attack.most_steps()
        # Where none stands, those that fall are timed, with the steps that this saves.
        share = 1.0 if attack.runs_to_the_end or not standing else early
        whole = standing * searches + share * falling * min(searches, 1)
        seconds, passes = self._rate(cascade, number, whole)
        steps = whole * attack.most_steps()
        return StagePlan(
            name, standing + falling, steps * passes, steps * seconds / cascade.workers
        )

    def _rate(self, cascade: Cascade, number: int, searches: float) -> tuple[float, float]:
        """Seconds and passes of one step of one of so many searches; 0 where the stage is skipped."""
        positions = self._pilot[2]
        if len(positions) == 0 or searches == 0:
            return 0.0, 0.0
        count = max(1, min(cascade.batch_size, math.ceil(searches / cascade.workers)))
        run, chosen = StageRun(number, "all"), tiled(positions, count)
        known = (str(cascade.stages[number].identity), count)
        if known in self._rates:
            return self._rates[known]
        with threads_of(cascade.workers):
            try:
                search = cascade.search_of(run, chosen, self.few.load(chosen))
            except AttackError:  # not defined for this model
                return 0.0, 0.0
            self._rates[known] = _time_steps(search)
        return self._rates[known]


class _EnoughError(Exception):
    """A search has been timed."""


def _time_steps(search: Search[Any]) -> tuple[float, float]:
    """Seconds and passes of one step of one search, completed or become unnecessary, from the first
    steps of many: a step of all may be several of each, as Square's are."""
    starts = search.attack.cost_changes(search.samples.inputs.shape[1:])
    if len(starts) > 1:
        return _time_stretches(search, starts)
    done = 0
    marks = [(time.perf_counter(), 0, 0)]

    def progress(steps: int) -> None:
        nonlocal done
        done += steps

    def stepped(_: object) -> None:
        marks.append((time.perf_counter(), done, _passes(search)))
        if len(marks) > _FEWEST_STEPS and marks[-1][0] - marks[1][0] > _SECONDS:
            raise _EnoughError

    try:
        search.run(save=stepped, progress=progress)
    except _EnoughError:
        del marks[0]  # starts are few among many steps
    else:
        marks.append((time.perf_counter(), done, marks[-1][2]))
    (first, begun, before), (last, ended, after) = marks[0], marks[-1]
    steps = max(1, ended - begun)
    return (last - first) / steps, (after - before) / steps


def _passes(search: Search[Any]) -> int:
    return int(search.result.forwards.sum() + search.result.backwards.sum())


def _time_stretches(search: Search[Any], starts: Sequence[int]) -> tuple[float, float]:
    """The same where steps cost more or less from each of ``starts`` on: some steps of each stretch
    are made and the rest is reckoned from the later half of them, as what is remembered grows."""
    whole = search.attack.most_steps()
    stretches = list(pairwise([*starts, whole]))
    totals = [0.0, 0.0]
    marks: list[tuple[float, int, float]] = []

    def stepped(_: object) -> None:
        active = search.active
        if active is None or len(active) == 0 or not stretches:
            return
        first, last = stretches[0]
        step = float(active.state.step.double().mean())
        marks.append((time.perf_counter(), _passes(search), min(step, last)))
        over = bool((active.state.step >= last).all())
        long = marks[-1][0] - marks[0][0] > _STRETCHES_SECONDS * (last - first) / whole
        if not over and not (long and len(marks) > _FEWEST_STEPS):
            return
        half, end = marks[len(marks) // 2], marks[-1]
        left = max(0.0, last - end[2])
        for i in (0, 1):
            made = end[i] - marks[0][i]
            later = (end[i] - half[i]) / max(end[2] - half[2], 1e-9) if end[2] > half[2] else 0.0
            # What came before the first mark of a stretch is as what came after it.
            if (steps := end[2] - marks[0][2]) > 0:
                made += made / steps * (marks[0][2] - first)
            totals[i] += (made + left * later) / len(active)
        del stretches[0], marks[:]
        if not stretches:
            raise _EnoughError
        state = replace(active.state, step=active.state.step.clamp_min(last))
        search.active = replace(active, state=state)

    with suppress(_EnoughError):
        search.run(save=stepped)
    return totals[0] / whole, totals[1] / whole
