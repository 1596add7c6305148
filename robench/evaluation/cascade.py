"""Stages of attacks: what survives one goes on to the next.

A single attack is a cascade of one stage. The ``core`` protocol's audit lives here too: its later
stages run on a random sample of survivors first, and on all of them after any hit or flag.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robench import seeding
from robench.attacks import build_attack
from robench.attacks.base import BatchAttack
from robench.errors import AttackError, RobenchError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.engine import Engine
from robench.evaluation.passes import Passes, SearchModel
from robench.evaluation.samples import Found, Samples
from robench.evaluation.search_models import EagerModel
from robench.evaluation.validity import flag_few_classes, flag_gradients, flag_square
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, AuditResult, Flag, StageResult
from robench.statistics.intervals import missed_share_upper
from robench.threat_models import ThreatModel

__all__ = ["Attacked", "Cascade", "SampleSource"]

Save = Callable[[Callable[[], dict[str, Any]]], None]


class SampleSource(Protocol):
    """Where a cascade gets its samples from, some at a time."""

    def __len__(self) -> int: ...

    def load(self, rows: Tensor) -> Samples:
        """Samples on the device, for int64 rows (n′,) on the CPU."""
        ...


@dataclass
class Attacked:
    """What a cascade did to each sample. Tensors are on the CPU, the sample is the first axis."""

    adv_inputs: Tensor
    stage: Tensor
    """int64 (n,): the stage that broke the sample, −1: none"""
    closest_margin: Tensor
    found_size: Tensor
    forwards: Tensor
    backwards: Tensor
    errors: dict[int, str] = field(default_factory=dict)
    stage_names: tuple[str, ...] = ()
    stages: list[StageResult] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    audit: AuditResult | None = None

    @classmethod
    def nothing_yet(cls, count: int, shape: tuple[int, ...]) -> Attacked:
        """Before the first stage."""
        zeros = torch.zeros(count, dtype=torch.int64)
        return cls(
            adv_inputs=torch.zeros(count, *shape),
            stage=zeros - 1,
            closest_margin=torch.full((count,), torch.inf),
            found_size=torch.full((count,), torch.nan),
            forwards=zeros.clone(),
            backwards=zeros.clone(),
        )

    def survivors(self) -> Tensor:
        """Rows that are neither broken nor errored, int64."""
        alive = self.stage < 0
        if self.errors:
            alive[list(self.errors)] = False
        return alive.nonzero().squeeze(1)

    def merge(self, rows: Tensor, found: Found, stage: int) -> None:
        """Take over what a stage found for ``rows``."""
        broken = found.broken.cpu()
        margins = found.closest_margin.cpu()
        untouched = (self.forwards[rows] == 0) & self.closest_margin[rows].isinf()
        better = broken | (margins < self.closest_margin[rows]) | untouched
        self.adv_inputs[rows[better]] = found.adv_inputs.cpu()[better]
        self.closest_margin[rows] = torch.minimum(margins, self.closest_margin[rows])
        self.stage[rows[broken]] = stage
        sizes = found.found_size.cpu()
        self.found_size[rows] = torch.where(sizes.isnan(), self.found_size[rows], sizes)
        self.forwards[rows] += found.forwards.cpu()
        self.backwards[rows] += found.backwards.cpu()
        for index, message in found.errors.items():
            self.errors[int(rows[index])] = message


class Cascade:
    """Runs the stages of one attack specification over one model's samples.

    Args:
        spec: a cascade, or a single attack.
        model: the model under evaluation, on its device.
        threat_model: the ball.
        search_model: what searches run on when they attack the final output.
        adjudicator: judges with the original model.
        batch_size: slots of the engine.
        shard_size: samples that are on the device at a time.
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
        search_model: SearchModel,
        adjudicator: Adjudicator,
        *,
        batch_size: int,
        shard_size: int,
        seed: int,
        progress: Callable[[int], None] | None = None,
        save: Save | None = None,
    ) -> None:
        self.spec = spec
        self.stages = spec.for_outputs(model.outputs)
        self.attacks = [build_attack(stage, threat_model) for stage in self.stages]
        self.model = model
        self.threat_model = threat_model
        self.search_model = search_model
        self.adjudicator = adjudicator
        self.batch_size = batch_size
        self.shard_size = shard_size
        self.seed = seed
        self.progress = progress
        self.save = save

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
        self, source: SampleSource, shape: tuple[int, ...], snapshot: dict[str, Any] | None = None
    ) -> Attacked:
        """Run all stages, or go on from a snapshot.

        Raises:
            AttackError: no stage is defined for this model.
        """
        attacked = Attacked.nothing_yet(len(source), shape)
        attacked.stage_names = tuple(stage.name for stage in self.stages)
        first, done_rows, engine_state = 0, None, None
        if snapshot is not None:
            for name, value in snapshot["attacked"].items():
                setattr(attacked, name, value)
            attacked.stages = [StageResult.model_validate(s) for s in snapshot["stages"]]
            attacked.flags = [Flag.model_validate(f) for f in snapshot["flags"]]
            first, done_rows = snapshot["stage"], snapshot["rows_done"]
            engine_state = snapshot["engine"]
        count = len(source)
        for index in range(first, len(self.stages)):
            due = attacked.survivors()
            if self.spec.audit is not None and index >= self.spec.audit.first_stage:
                self._audit(attacked, source, due)
                break
            self._run_stage(index, attacked, source, due, done_rows, engine_state)
            done_rows = engine_state = None
        if all(stage.skipped for stage in attacked.stages) and count:
            raise AttackError(str(attacked.stages[0].skipped), where=self.spec.name)
        self._flag(attacked, count)
        return attacked

    def _audit(self, attacked: Attacked, source: SampleSource, survivors: Tensor) -> None:
        """The later stages on a random sample of survivors, on all of them if that hits."""
        audit = self.spec.audit
        if audit is None:
            return
        wanted = max(audit.minimum, round(audit.fraction * len(survivors)))
        keys = seeding.derive(source.load(survivors).keys.cpu(), seeding.tag("audit"))
        chosen = survivors[keys.argsort()[:wanted]].sort().values
        flags_before = len(attacked.flags)
        for index in range(audit.first_stage, len(self.stages)):
            due = chosen[attacked.stage[chosen] < 0]
            self._run_stage(index, attacked, source, due, None, None)
        hits = int((attacked.stage[chosen] >= 0).sum())
        escalate = hits > 0 or len(attacked.flags) > flags_before
        rest = survivors[~torch.isin(survivors, chosen)]
        if escalate and len(rest):
            for index in range(audit.first_stage, len(self.stages)):
                due = rest[attacked.stage[rest] < 0]
                self._run_stage(index, attacked, source, due, None, None)
        everyone = escalate or len(rest) == 0
        bound = (
            0.0 if everyone else missed_share_upper(hits, len(chosen), population=len(survivors))
        )
        attacked.audit = AuditResult(
            survivors=len(survivors),
            audited=len(chosen),
            hits=hits,
            escalated=escalate,
            missed_share_upper=bound if len(survivors) else None,
        )

    def _run_stage(
        self,
        index: int,
        attacked: Attacked,
        source: SampleSource,
        due: Tensor,
        done_rows: Tensor | None,
        engine_state: dict[str, Any] | None,
    ) -> None:
        stage, attack = self.stages[index], self.attacks[index]
        started = time.perf_counter()
        before = (int(attacked.forwards.sum()), int(attacked.backwards.sum()))
        errors_before = len(attacked.errors)
        skipped = None
        zero = nonfinite = 0
        rows_done = due[:0] if done_rows is None else done_rows
        todo = due[~torch.isin(due, rows_done)]
        for rows in torch.split(todo, self.shard_size) if len(todo) else ():
            samples = source.load(rows)
            try:
                found = self._search(
                    stage, attack, samples, attacked, index, rows_done, engine_state
                )
            except AttackError as error:
                skipped = str(error)
                break
            engine_state = None
            attacked.merge(rows, found, index)
            rows_done = torch.cat((rows_done, rows))
            zero += found.zero_gradients
            nonfinite += found.nonfinite_gradients
        attacked.flags += flag_gradients(zero, nonfinite, max(len(due), 1))
        broken = int((attacked.stage[due] == index).sum())
        attacked.stages.append(
            StageResult(
                name=stage.name,
                attempted=0 if skipped else len(due),
                broken=broken,
                errored=len(attacked.errors) - errors_before,
                forwards=int(attacked.forwards.sum()) - before[0],
                backwards=int(attacked.backwards.sum()) - before[1],
                seconds=time.perf_counter() - started,
                skipped=skipped,
            )
        )

    def _search(
        self,
        stage: AttackSpec,
        attack: Any,
        samples: Samples,
        attacked: Attacked,
        index: int,
        rows_done: Tensor,
        engine_state: dict[str, Any] | None,
    ) -> Found:
        if isinstance(attack, BatchAttack):
            return self._propose(attack, samples)
        search_model, samples = self._aim(stage, samples)
        num_classes = samples.clean_logits.shape[1]
        passes = Passes(search_model, num_classes, self.batch_size)
        engine = Engine(
            attack,
            passes,
            self.adjudicator,
            batch_size=self.batch_size,
            seed_tag=stage.name,
            judges_every_step=stage.output is not None,
        )

        def save(snapshot: Callable[[], dict[str, Any]]) -> None:
            if self.save is not None:
                self.save(lambda: _snapshot(attacked, index, rows_done, snapshot()))

        return engine.run(samples, progress=self.progress, snapshot=engine_state, save=save)

    def _aim(self, stage: AttackSpec, samples: Samples) -> tuple[SearchModel, Samples]:
        """The model to search on: the final output's, or that of another named output."""
        if stage.output is None:
            return self.search_model, samples
        other = self.model.with_output(stage.output)
        logits = Adjudicator(other, self.threat_model, self.batch_size).logits(samples.inputs)
        aimed = Samples(samples.inputs, samples.labels, logits, samples.keys)
        return EagerModel(other), aimed

    def _propose(self, attack: BatchAttack, samples: Samples) -> Found:
        """A foreign attack's proposals, judged like any other's."""
        counted = _Counted(self.model)
        count = len(samples)
        errors: dict[int, str] = {}
        try:
            proposed = attack.propose(counted, samples.inputs, samples.labels, self.seed)
        except RobenchError:
            raise
        except Exception as error:
            # A foreign loop gives no hint which sample it failed on: none of them was tested.
            proposed = samples.inputs
            errors = dict.fromkeys(range(count), f"{type(error).__name__}: {error}")
        verdicts = self.adjudicator.judge(proposed, samples.inputs, samples.labels)
        if self.progress is not None:
            self.progress(count)
        zeros = torch.zeros(count, dtype=torch.int64, device=samples.inputs.device)
        allowed = verdicts.allowed.view(-1, *([1] * (proposed.dim() - 1)))
        return Found(
            adv_inputs=torch.where(allowed, proposed, samples.inputs),
            broken=verdicts.broken,
            rank=torch.where(verdicts.broken, 0, -1),
            closest_margin=torch.where(verdicts.allowed, verdicts.margin, torch.inf),
            found_size=torch.full_like(verdicts.margin, torch.nan),
            forwards=zeros + counted.forwards // max(count, 1),
            backwards=zeros + counted.backwards // max(count, 1),
            errors=errors,
        )

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


class _Counted(nn.Module):
    """Counts inputs that go through a model, forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.forwards += len(inputs)
        logits: Tensor = self.model(inputs)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def _snapshot(
    attacked: Attacked, stage: int, rows_done: Tensor, engine: dict[str, Any]
) -> dict[str, Any]:
    plain = {k: v for k, v in vars(attacked).items() if isinstance(v, Tensor) or k == "errors"}
    return {
        "attacked": plain,
        "stages": [s.model_dump(mode="json") for s in attacked.stages],
        "flags": [f.model_dump(mode="json") for f in attacked.flags],
        "stage": stage,
        "rows_done": rows_done,
        "engine": engine,
    }
