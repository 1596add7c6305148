"""Stages of attacks: what survives one goes on to the next.

A single attack is a cascade of one stage. What is done is a plan of stage runs, one stage on some
samples each. After the stages, searches that came closer to the boundary than low precision can
tell, of samples that survived, are run once more in float32. Where a protocol has an audit
(:mod:`robench.evaluation.audit`), its later stages are planned twice: for the audited samples, and
for the others, as far as the audit gives reason to.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

import torch
from torch import Tensor

from robench.acceleration.search_models import SearchModel
from robench.attacks import build_attack
from robench.attacks.base import Attack, BatchAttack, Others
from robench.attacks.trials import Trials
from robench.errors import AttackError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.adversarial_inputs import Inputs
from robench.evaluation.audit import audit_result, draw_audit, escalates_to
from robench.evaluation.averaged_model import without_draws_of_its_own
from robench.evaluation.batch_attacks import run_batch_attack
from robench.evaluation.cascade_state import CascadeState, PhaseCounts, StageRun, Subset
from robench.evaluation.expected_passes import steps_a_sample
from robench.evaluation.flags import attack_flags, stalled_flags
from robench.evaluation.prepared_model import PreparedModel
from robench.evaluation.queries import Queries
from robench.evaluation.samples import Samples, SearchResult
from robench.evaluation.search import Search
from robench.evaluation.traces import Tracer
from robench.evaluation.trials import images_of, run_trials
from robench.execution import Call, Progress, Save, Task, ThisProcess
from robench.records import AttackSpec, Flag
from robench.results.traces import Traced, TraceParts, write_trace
from robench.stand_ins.catalogue import find_stand_in

_NEAR = 2.0
"""Searches whose margin came within so many times the model's tolerance are run again."""


def plan_runs(spec: AttackSpec, rechecked: Sequence[bool]) -> list[StageRun]:
    """The stage runs of a specification, in order.

    Where a stage is ``rechecked``, searches near the boundary are run again.
    """
    first_audited = spec.audit.first_stage if spec.audit else len(rechecked)
    late = range(first_audited, len(rechecked))
    parts: list[tuple[Subset, range]] = [("all", range(first_audited))]
    parts += [("audited", late), ("not_audited", late)]
    return [
        StageRun(stage, subset, recheck)
        for subset, stages in parts
        for recheck in (False, True)
        for stage in stages
        if rechecked[stage] or not recheck
    ]


class Cascade:
    """Runs the stages of one attack specification over one model's samples.

    Args:
        spec: a cascade, or a single attack.
        prepared: the model and its correctly classified samples, m of them. The workers of
            its executor share the batch, and change no result.
        progress: told about completed steps.
        save: decides when to keep a snapshot; see :meth:`Search.run`.
        trace: where what searches see at each step goes; None: nowhere.

    Raises:
        UnknownNameError, UsageError, AttackError: a stage that cannot be built.
    """

    def __init__(
        self,
        spec: AttackSpec,
        prepared: PreparedModel,
        *,
        progress: Progress | None = None,
        save: Save | None = None,
        trace: TraceParts | None = None,
    ) -> None:
        self.spec = spec
        self.trace = trace
        self.prepared = prepared
        self.stages = spec.for_outputs(prepared.model.outputs)
        self.attacks = [build_attack(stage, prepared.threat_model) for stage in self.stages]
        for through in (stage.through for stage in self.stages if stage.through is not None):
            find_stand_in(through)
        self.workers = min(prepared.workers, prepared.choice.batch_size)
        self.batch_size = prepared.choice.batch_size // self.workers
        self.stalled = 0
        self.progress = progress
        self.save = save
        self.plan = plan_runs(spec, [self._is_rechecked(i) for i in range(len(self.stages))])

    def _is_rechecked(self, stage: int) -> bool:
        spec = self.stages[stage]
        if spec.output is not None or spec.through is not None:
            return False
        if isinstance(self.attacks[stage], BatchAttack | Trials):
            return False
        model = self._model_of(StageRun(stage, "all"))
        # What runs on the original model anyway would only be repeated.
        return model is not self.prepared.models.exact and model.tolerance > 0

    @property
    def total_steps(self) -> int:
        """Steps if all samples survive; skipped stages cost none."""
        return sum(self.stage_steps(attack, len(self.prepared)) for attack in self.attacks)

    def stage_steps(self, attack: Any, count: int) -> int:
        """Steps of one of its attacks for ``count`` samples that survive."""
        if isinstance(attack, BatchAttack):
            return count
        return count * steps_a_sample(attack, self.prepared.model.num_classes)

    def run(self, adv_inputs: Inputs, snapshot: dict[str, Any] | None = None) -> CascadeState:
        """Run the whole plan, or go on from a snapshot.

        The samples' adversarial inputs go to ``adv_inputs``, m of them; ``snapshot`` is what ``save``
        was given in an interrupted run.

        Raises:
            AttackError: no stage is defined for this model.
        """
        self.state, begun = CascadeState.nothing_yet(adv_inputs), list[Task[Tensor]]()
        # Another machine may have chosen another form of the model, and with it another plan.
        if snapshot is not None and snapshot["plan"] == self._plan_content():
            self.state = CascadeState.from_content(snapshot["state"], adv_inputs)
            begun = [Task(*task) for task in snapshot["shards"]]
        elif self.trace is not None:
            self.trace.clear()
        for number, run in enumerate(self.plan):
            if number == len(self.state.phases):
                self._started = time.perf_counter()
                counts = PhaseCounts(self._due(run))
                self.state = self.state.with_phase(counts, new=True)
            if not self.state.phases[number].finished:
                self._run(number, begun)
                begun = []
        state = self.state
        names = tuple(stage.name for stage in self.stages)
        plan = zip(self.plan, state.phases, strict=True)
        runs = tuple(counts.told(run, self.stages[run.stage]) for run, counts in plan)
        audit = audit_result(state, self.plan, names) if self.spec.audit else None
        state = replace(state, stage_names=names, runs=runs, audit=audit)
        stages = state.stages
        if stages and all(stage.skipped for stage in stages) and len(self.prepared):
            raise AttackError(str(stages[0].skipped), where=self.spec.name)
        return state

    def flags(self, state: CascadeState) -> list[Flag]:
        """Reasons to doubt the outcome ``state``."""
        prepared = self.prepared
        flags = attack_flags(
            self.spec,
            state.runs,
            # Where a target is given, attacks choose none and lack none.
            num_classes=None if prepared.threat_model.targets else prepared.model.num_classes,
            n=max(len(prepared.dataset), len(prepared)),
        )
        return [*flags, *stalled_flags(self.stalled)]

    # --- who is due --------------------------------------------------------------------------

    def _due(self, run: StageRun) -> Tensor:
        """Rows that a stage run is due for, int64."""
        due = self.state.survivors()
        if self.spec.audit is not None and run.subset != "all":
            self.state = draw_audit(self.spec.audit, self.state, self.prepared)
            audited = torch.isin(due, self.state.audited)
            if run.subset == "audited":
                due = due[audited]
            else:
                reach = escalates_to(self.state, self.plan)
                due = due[~audited] if reach is not None and run.stage <= reach else due[:0]
        if (within := self.stages[run.stage].within) is not None:
            clean = self.prepared.clean_margins_of(due)
            closest = self.state.closest_margin[due]
            due = due[(closest <= within * clean) | closest.isinf()]  # or nothing is known
        return due[self._near(run, due).any(dim=1)] if run.recheck else due

    def _near(self, run: StageRun, rows: Tensor) -> Tensor:
        """bool (n′, searches): searches of the run's stage that came near the boundary."""
        if run.stage not in self.state.search_margins:
            return torch.zeros(len(rows), 1, dtype=torch.bool)
        margins = self.state.search_margins[run.stage][rows]
        return margins <= _NEAR * self._model_of(replace(run, recheck=False)).tolerance

    # --- one stage run -----------------------------------------------------------------------

    def _run(self, number: int, begun: Sequence[Task[Tensor]]) -> None:
        run, counts = self.plan[number], self.state.phases[number]
        # A foreign attack may draw one number for a whole batch, and share what it likes.
        alone = isinstance(self.attacks[run.stage], BatchAttack) or self.stalled
        executor = ThisProcess() if alone else self.prepared.executor
        tasks = [*begun, *self._tasks(counts, begun, 1 if alone else self.workers)]
        self._started = time.perf_counter() - counts.seconds
        skipped = model = None
        try:
            if tasks or self.stages[run.stage].through is None:
                # Before searches fork: what they take is built once, and files are read here alone.
                model = self._model_of(run)
                self._others(run)
            results = executor.run(
                tasks,
                partial(self._call, run),
                None if run.recheck else self.progress,
                self._offer_snapshot,
                self._one_stalled,
            )
            with closing(results):
                for task, found in results:
                    self.state = self.state.merged(task.about, SearchResult(**found), run.stage)
        except AttackError as error:
            skipped = str(error)
        known = (None, self.prepared.models.search)
        counts = replace(
            self.state.phases[number],
            seconds=time.perf_counter() - self._started,
            finished=True,
            skipped=skipped,
            searched_on=None if model in known else model.description,
        )
        self.state = self.state.with_phase(counts)
        self._offer_snapshot(list)

    def _one_stalled(self) -> None:
        self.stalled += 1

    def _offer_snapshot(self, unfinished: Callable[[], list[Task[Tensor]]]) -> None:
        if self.save is not None:
            self.save(lambda: self._snapshot(unfinished()))

    def _snapshot(self, tasks: Sequence[Task[Tensor]]) -> dict[str, Any]:
        """All that is needed to go on, whenever it is made."""
        state, counts = self.state, self.state.phases[-1]
        left: list[list[Any]] = []
        if not counts.finished:
            seconds = time.perf_counter() - self._started
            state = state.with_phase(replace(counts, seconds=seconds))
            # What is merged must not be merged again, whatever the executor still has of it.
            left = [
                [task.about, task.state]
                for task in tasks
                if not bool(torch.isin(task.about, counts.done).any())
            ]
        return {"plan": self._plan_content(), "state": state.content(), "shards": left}

    def _plan_content(self) -> list[list[Any]]:
        return [[self.stages[run.stage].name, run.subset, run.recheck] for run in self.plan]

    def _tasks(
        self, counts: PhaseCounts, begun: Sequence[Task[Tensor]], workers: int
    ) -> list[Task[Tensor]]:
        """What is left to be searched, in equal parts that fit onto the device."""
        rows = counts.todo(torch.cat([counts.due[:0], *(task.about for task in begun)]))
        at_most, tasks = self.prepared.shard_size // workers or 1, []
        # Half of what is left at a time, so that nobody waits long for the last, but no search that
        # would not fill its batch.
        least = min(self.batch_size, -(-len(rows) // workers))
        while len(rows):
            share = min(at_most, max(least, -(-len(rows) // (2 * workers))))
            share = share if workers > 1 else at_most
            tasks.append(Task(rows[:share]))
            rows = rows[share:]
        return tasks

    def _call(self, run: StageRun, task: Task[Tensor], worker: int) -> Call:
        """How a worker does a task: its :class:`SearchResult`, as plain data."""
        attack, prepared = self.attacks[run.stage], self.prepared.at(worker)
        samples = prepared.load(task.about)

        def at_once(progress: Progress, _: Save) -> dict[str, Any]:
            assert isinstance(attack, BatchAttack)
            result = run_batch_attack(attack, prepared.adjudicator, samples, prepared.settings.seed)
            progress(len(samples))
            return vars(result)

        def search(progress: Progress, save: Save) -> dict[str, Any]:
            made = self.search_of(run, task.about, samples, worker)
            return vars(made.run(task.state, save=save, progress=progress))

        def tried(progress: Progress, save: Save) -> dict[str, Any]:
            assert isinstance(attack, Trials)
            rows = prepared.rows[prepared.aims.sample[task.about]]
            images = images_of(attack, samples, prepared.dataset, rows)
            return vars(
                run_trials(
                    attack,
                    prepared.adjudicator,
                    samples,
                    images,
                    task.state,
                    save=save,
                    progress=progress,
                )
            )

        if isinstance(attack, Trials):
            return tried
        return at_once if isinstance(attack, BatchAttack) else search

    def search_of(
        self, run: StageRun, rows: Tensor, samples: Samples, worker: int = 0
    ) -> Search[Any]:
        """The search of a stage run over samples that are at ``rows``, int64 (k,), and on the worker's
        device, ready to begin; of no attack on whole batches.

        Raises:
            AttackError: the stage is not defined for this model.
        """
        stage, attack = self.stages[run.stage], self.attacks[run.stage]
        prepared = self.prepared.at(worker)
        samples = replace(samples, others=self._others(run, worker))
        search_model, samples = self._aim(stage, samples, self._model_of(run, worker), prepared)
        aside = stage.output is not None or stage.through is not None
        ranking = search_model if aside else prepared.models.exact
        classes = samples.clean_logits.shape[1]
        near = self._near(run, rows).to(samples.inputs.device) if run.recheck else None
        assert isinstance(attack, Attack)
        attack, search_model = without_draws_of_its_own(attack, search_model)
        return Search(
            attack,
            Queries(search_model, classes, self.batch_size),
            prepared.adjudicator,
            samples,
            batch_size=self.batch_size,
            # By what the record's key holds: the name of a stage, never that of a column.
            seed_tag=stage.name if self.spec.stages else stage.output or "",
            judges_every_step=not search_model.own_logits,
            only=near,
            ranking=Queries(ranking, classes, self.batch_size),
            tracer=self._tracer(run, rows),
        )

    def _tracer(self, run: StageRun, rows: Tensor) -> Tracer | None:
        if self.trace is None:
            return None
        number, attack = self.plan.index(run), self.attacks[run.stage]
        without = isinstance(attack, Attack) and attack.kind == "query"
        return Tracer(self.trace.writer(), number, rows, improvements=without)

    def write_trace(self, stream: BinaryIO) -> None:
        """What the searches saw, as Parquet, once :meth:`run` is done."""
        prepared = self.prepared
        aims, ids = prepared.aims, prepared.dataset.sample_ids
        names = Traced(
            [(self.stages[run.stage].name, run.recheck) for run in self.plan],
            [ids[row] for row in prepared.rows[aims.sample].tolist()],
            aims.classes.tolist() if prepared.threat_model.targets is not None else None,
        )
        if self.trace is not None:
            write_trace(stream, self.trace, names)

    def _model_of(self, run: StageRun, worker: int = 0) -> SearchModel:
        """What a stage run that attacks the final output searches on.

        Raises:
            AttackError: it goes through a stand-in that this model cannot have.
        """
        prepared = self.prepared.at(worker)
        if (through := self.stages[run.stage].through) is not None:
            return prepared.stand_in(through)
        if run.recheck:
            return prepared.models.exact
        attack = self.attacks[run.stage]
        if isinstance(attack, BatchAttack | Trials):
            return prepared.models.search
        return prepared.models.for_attack(attack.kind)

    def _others(self, run: StageRun, worker: int = 0) -> Others | None:
        """The samples that a stage run's attack starts from beside its own."""
        wanted = getattr(self.attacks[run.stage], "starts_from_others", False)
        return self.prepared.at(worker).shown if wanted else None

    def _aim(
        self,
        stage: AttackSpec,
        samples: Samples,
        search_model: SearchModel,
        prepared: PreparedModel,
    ) -> tuple[SearchModel, Samples]:
        """The model to search on, and the samples with the logits of what is under attack."""
        if stage.output is not None:
            other = prepared.model.with_output(stage.output)
            search_model = prepared.averaged(SearchModel(other, own_logits=False))
        if search_model.own_logits:
            return search_model, samples
        judge = Adjudicator(search_model.module, prepared.threat_model, self.batch_size)
        return search_model, replace(samples, clean_logits=judge.logits(samples.inputs))
