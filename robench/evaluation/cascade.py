"""Stages of attacks: what survives one goes on to the next.

A single attack is a cascade of one stage. What a run does is a list of phases, one stage on some
samples each. After the stages, searches that came closer to the boundary than low precision can
tell, of samples that survived, are run once more in float32. The ``core`` protocol's audit is a list
of phases too: its later stages run on a random sample of survivors first, and on all of them
after any hit or flag.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from robench import seeding
from robench.acceleration.search_models import EagerModel, SearchModel, SearchModels
from robench.attacks import build_attack
from robench.attacks.base import BatchAttack
from robench.errors import AttackError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.adversarial_inputs import Inputs
from robench.evaluation.attacked import Attacked
from robench.evaluation.engine import Engine
from robench.evaluation.foreign import propose
from robench.evaluation.passes import Passes
from robench.evaluation.phases import Phase, Tally
from robench.evaluation.samples import Found, Samples
from robench.evaluation.validity import flag_few_classes, flag_gradients, flag_square
from robench.evaluation.workers import Crew, Save, Search, Shard, Tell
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, AuditResult, Flag
from robench.statistics.intervals import missed_share_upper
from robench.threat_models import ThreatModel

__all__ = ["Attacked", "Cascade", "SampleSource"]

_NEAR = 2.0
"""Searches whose margin came within so many times the model's tolerance are run again."""


class SampleSource(Protocol):
    """Where a cascade gets its samples from, some at a time."""

    def __len__(self) -> int: ...

    def load(self, rows: Tensor) -> Samples:
        """Samples on the device, for int64 rows (n′,) on the CPU."""
        ...


class Cascade:
    """Runs the stages of one attack specification over one model's samples.

    Args:
        spec: a cascade, or a single attack.
        model: the model under evaluation, on its device.
        threat_model: the ball.
        models: what searches run on when they attack the final output.
        adjudicator: judges with the original model.
        batch_size: slots of all engines together.
        shard_size: samples that are on the device at a time.
        workers: engines side by side (:mod:`robench.evaluation.workers`). Changes no result.
        seed: of all draws.
        progress: told about completed steps.
        save: decides when to keep a snapshot; see :meth:`Engine.run`.

    Raises:
        UnknownNameError, UsageError, AttackError: a stage that cannot be built.
    """

    def __init__(
        self,
        spec: AttackSpec,
        model: RobenchModel,
        threat_model: ThreatModel,
        models: SearchModels,
        adjudicator: Adjudicator,
        *,
        batch_size: int,
        shard_size: int,
        workers: int = 1,
        seed: int,
        progress: Callable[[int], None] | None = None,
        save: Save | None = None,
    ) -> None:
        self.spec = spec
        self.stages = spec.for_outputs(model.outputs)
        self.attacks = [build_attack(stage, threat_model) for stage in self.stages]
        self.model = model
        self.threat_model = threat_model
        self.models = models
        self.adjudicator = adjudicator
        self.workers = min(workers, batch_size)
        self.batch_size = batch_size // self.workers
        self.shard_size = shard_size
        self.seed = seed
        self.progress = progress
        self.save = save
        self.plan = self._plan()

    def _plan(self) -> list[Phase]:
        everything = range(len(self.stages))
        audit = self.spec.audit
        if audit is None:
            return self._phases(everything, "all")
        early, late = everything[: audit.first_stage], everything[audit.first_stage :]
        return [
            *self._phases(early, "all"),
            *self._phases(late, "audited"),
            *self._phases(late, "others"),
        ]

    def _phases(
        self, stages: Iterable[int], who: Literal["all", "audited", "others"]
    ) -> list[Phase]:
        first = [Phase(index, who) for index in stages]
        again = [
            Phase(phase.stage, who, again=True)
            for phase in first
            if self.stages[phase.stage].output is None
            and not isinstance(self.attacks[phase.stage], BatchAttack)
            # What runs on the original model anyway would only be repeated.
            and (model := self._model_of(phase)) is not self.models.exact
            and model.tolerance > 0
        ]
        return first + again

    def total_steps(self, count: int, num_classes: int) -> int:
        """Steps for ``count`` samples if all of them survive; skipped stages cost none."""
        return sum(self._stage_steps(attack, count, num_classes) for attack in self.attacks)

    def _stage_steps(self, attack: Any, count: int, num_classes: int) -> int:
        if isinstance(attack, BatchAttack):
            return count
        try:
            return int(count * attack.ranks(num_classes) * attack.steps())
        except AttackError:
            return 0

    def run(
        self,
        source: SampleSource,
        room: tuple[int, ...] | Inputs,
        snapshot: dict[str, Any] | None = None,
    ) -> Attacked:
        """Run all phases, or go on from a snapshot.

        Args:
            source: the samples.
            room: where their adversarial inputs go, or the shape (C, H, W) of one.
            snapshot: what ``save`` was given in an interrupted run.

        Raises:
            AttackError: no stage is defined for this model.
        """
        count = len(source)
        adv_inputs = torch.zeros(count, *room) if isinstance(room, tuple) else room
        attacked = Attacked.nothing_yet(adv_inputs)
        attacked.stage_names = tuple(stage.name for stage in self.stages)
        first, tally, begun = 0, None, list[Shard]()
        if snapshot is not None:
            attacked.restore(snapshot["attacked"])
            first = snapshot["phase"]
            begun = [Shard(rows, engine) for rows, engine in snapshot["engines"]]
            tally = Tally(**snapshot["tally"]) if snapshot["tally"] else None
        for number in range(first, len(self.plan)):
            phase = self.plan[number]
            tally = tally or Tally(due=self._due(phase, attacked, source))
            if len(tally.due) or (phase.who == "all" and not phase.again):
                self._run_phase(number, attacked, source, tally, begun)
            tally, begun = None, []
        if attacked.stages and all(stage.skipped for stage in attacked.stages) and count:
            raise AttackError(str(attacked.stages[0].skipped), where=self.spec.name)
        if self.spec.audit is not None:
            attacked.audit = self._audit_result(attacked, source)
        self._flag(attacked, count)
        return attacked

    # --- who is due --------------------------------------------------------------------------

    def _due(self, phase: Phase, attacked: Attacked, source: SampleSource) -> Tensor:
        """Rows that a phase runs on, int64."""
        due = attacked.survivors()
        if phase.who != "all":
            self._choose_audited(attacked, source)
            audited = torch.isin(due, attacked.audited)
            if phase.who == "audited":
                due = due[audited]
            else:
                due = due[~audited] if self._escalates(attacked) else due[:0]
        if phase.again:
            near = self._near(phase, attacked, due)
            due = due[near.any(dim=1)]
        return due

    def _near(self, phase: Phase, attacked: Attacked, rows: Tensor) -> Tensor:
        """bool (n′, ranks): searches of the phase's stage that came near the boundary."""
        if phase.stage not in attacked.rank_margins:
            return torch.zeros(len(rows), 1, dtype=torch.bool)
        margins = attacked.rank_margins[phase.stage][rows]
        return margins <= _NEAR * self._model_of(replace(phase, again=False)).tolerance

    def _choose_audited(self, attacked: Attacked, source: SampleSource) -> None:
        """Draw the audit's sample of the survivors, once."""
        audit = self.spec.audit
        if audit is None or attacked.survivors_before_audit >= 0:
            return
        survivors = attacked.survivors()
        wanted = audit.sample_size(len(survivors))
        keys = seeding.derive(source.load(survivors).keys.cpu(), seeding.tag("audit"))
        attacked.audited = survivors[keys.argsort()[:wanted]].sort().values
        attacked.survivors_before_audit = len(survivors)
        attacked.flags_before_audit = len(attacked.flags)

    def _hits(self, attacked: Attacked) -> int:
        return int((attacked.stage[attacked.audited] >= 0).sum())

    def _escalates(self, attacked: Attacked) -> bool:
        return self._hits(attacked) > 0 or len(attacked.flags) > attacked.flags_before_audit

    def _audit_result(self, attacked: Attacked, source: SampleSource) -> AuditResult:
        self._choose_audited(attacked, source)
        survivors, audited = attacked.survivors_before_audit, len(attacked.audited)
        hits, escalated = self._hits(attacked), self._escalates(attacked)
        everyone = escalated or audited == survivors
        bound = 0.0 if everyone else missed_share_upper(hits, audited, population=survivors)
        return AuditResult(
            survivors=survivors,
            audited=audited,
            hits=hits,
            escalated=escalated,
            missed_share_upper=bound if survivors else None,
        )

    # --- one phase ---------------------------------------------------------------------------

    def _run_phase(
        self,
        number: int,
        attacked: Attacked,
        source: SampleSource,
        tally: Tally,
        begun: list[Shard],
    ) -> None:
        phase = self.plan[number]
        stage = self.stages[phase.stage]
        started = time.perf_counter() - tally.seconds

        def prepare(shard: Shard) -> Search:
            only = self._near(phase, attacked, shard.rows) if phase.again else None
            return partial(self._search, phase, source.load(shard.rows), only, shard.engine)

        def merge(shard: Shard, found: Found) -> None:
            attacked.merge(shard.rows, found, phase.stage)
            tally.add(shard.rows, found)

        def snapshot(unfinished: list[Shard]) -> dict[str, Any]:
            tally.seconds = time.perf_counter() - started
            return {
                "attacked": attacked.content(),
                "phase": number,
                "tally": dict(vars(tally)),
                "engines": [[shard.rows, shard.engine] for shard in unfinished],
            }

        foreign = isinstance(self.attacks[phase.stage], BatchAttack)
        # A foreign attack may draw one number for a whole batch, and share what it likes.
        workers = 1 if foreign else self.workers
        shards = [*begun, *self._shards(tally, begun, workers)]
        skipped = None
        try:
            tell = None if phase.again else self.progress
            Crew(workers, self.save, snapshot, tell).run(shards, prepare, merge)
        except AttackError as error:
            skipped = str(error)
        tally.seconds = time.perf_counter() - started
        if not phase.again:
            attacked.flags += flag_gradients(
                tally.zero_gradients, tally.nonfinite_gradients, max(len(tally.due), 1)
            )
        model = self._model_of(phase)
        search_name = model.description if model is not self.models.search else None
        attacked.stages.append(tally.result(stage.name, search_name, skipped))
        if self.save is not None:
            # What the last step left behind is merged; a snapshot must not merge it twice.
            after = {"phase": number + 1, "tally": None, "engines": list[Any]()}
            self.save(lambda: {"attacked": attacked.content(), **after})

    def _shards(self, tally: Tally, begun: list[Shard], workers: int) -> list[Shard]:
        """What is left to be searched, in equal parts that fit onto the device."""
        rows = tally.todo(torch.cat([tally.due[:0], *(shard.rows for shard in begun)]))
        if len(rows) == 0:
            return []
        share = min(self.shard_size // workers or 1, -(-len(rows) // workers))
        return [Shard(part) for part in torch.split(rows, share)]

    def _search(
        self,
        phase: Phase,
        samples: Samples,
        only: Tensor | None,
        engine_state: dict[str, Any] | None,
        tell: Tell,
        keep: Save,
    ) -> Found:
        stage, attack = self.stages[phase.stage], self.attacks[phase.stage]
        if isinstance(attack, BatchAttack):
            found = propose(attack, self.model, self.adjudicator, samples, self.seed)
            tell(len(samples))
            return found
        search_model, samples = self._aim(stage, samples, self._model_of(phase))
        num_classes = samples.clean_logits.shape[1]
        engine = Engine(
            attack,
            Passes(search_model, num_classes, self.batch_size),
            self.adjudicator,
            batch_size=self.batch_size,
            # By what the record's key holds: the name of a stage, never that of a column.
            seed_tag=stage.name if self.spec.stages else stage.output or "",
            judges_every_step=stage.output is not None,
        )
        if only is not None:
            only = only.to(samples.inputs.device)
        return engine.run(samples, progress=tell, snapshot=engine_state, save=keep, only=only)

    def _model_of(self, phase: Phase) -> SearchModel:
        """What a phase that attacks the final output searches on."""
        if phase.again:
            return self.models.exact
        attack = self.attacks[phase.stage]
        if isinstance(attack, BatchAttack):
            return self.models.search
        return self.models.for_attack(attack.kind)

    def _aim(
        self, stage: AttackSpec, samples: Samples, search_model: SearchModel
    ) -> tuple[SearchModel, Samples]:
        """The model to search on: the final output's, or that of another named output."""
        if stage.output is None:
            return search_model, samples
        other = self.model.with_output(stage.output)
        logits = Adjudicator(other, self.threat_model, self.batch_size).logits(samples.inputs)
        aimed = Samples(samples.inputs, samples.labels, logits, samples.keys)
        return EagerModel(other), aimed

    def _flag(self, attacked: Attacked, count: int) -> None:
        for index, stage in enumerate(self.stages):
            if stage.attack == "square" and index > 0:
                flag = flag_square(int((attacked.stage == index).sum()), count)
                attacked.flags += [flag] if flag else []
        few = flag_few_classes(self.spec, self.model.num_classes)
        attacked.flags += [few] if few else []
        for stage_result in attacked.stages:
            if stage_result.skipped:
                attacked.flags.append(
                    Flag(name="stage_skipped", severity="note", evidence=stage_result.skipped)
                )
