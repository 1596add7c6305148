"""What a cascade has done to each sample so far, and what each of its stage runs has come to.

Both are replaced, never changed in place, so that an interruption finds either the state before a
step or the one after it. The adversarial inputs are the exception, as they may fill a file: what
an interruption leaves there is written again, and the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from robench.evaluation.adversarial_inputs import Inputs
from robench.evaluation.samples import SearchResult
from robench.records import AttackSpec, AuditResult, RunCounts, StageResult

Subset = Literal["all", "audited", "not_audited"]


@dataclass(frozen=True)
class StageRun:
    """One stage on some of the samples."""

    stage: int
    subset: Subset
    recheck: bool = False
    """In float32, the searches that came near the boundary"""


def _no_rows() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class PhaseCounts:
    """What one stage on some of the samples has come to so far."""

    due: Tensor
    """int64: rows that it runs on"""
    done: Tensor = field(default_factory=_no_rows)
    """int64: those that are finished"""
    broken: int = 0
    errored: int = 0
    forwards: int = 0
    backwards: int = 0
    shared: bool = False
    """Passes were spent on samples together, so that none knows its own"""
    searches: int = 0
    zero_gradients: int = 0
    nonfinite_gradients: int = 0
    seconds: float = 0.0
    finished: bool = False
    skipped: str | None = None
    """Why it could not run"""
    searched_on: str | None = None
    """Where that is not what the record says of the whole evaluation"""

    def plus(self, rows: Tensor, result: SearchResult) -> PhaseCounts:
        """With what was found for ``rows`` as well."""
        ran = result.ran
        return replace(
            self,
            done=torch.cat((self.done, rows)),
            broken=self.broken + int(result.broken.sum()),
            errored=self.errored + len(result.errors),
            forwards=self.forwards + int(result.forwards.sum()) + result.shared_forwards,
            backwards=self.backwards + int(result.backwards.sum()) + result.shared_backwards,
            shared=self.shared or result.shared_forwards > 0,
            searches=self.searches + int(ran.sum()),
            zero_gradients=self.zero_gradients + int((result.zero_gradient & ran).sum()),
            nonfinite_gradients=self.nonfinite_gradients + int((result.nonfinite & ran).sum()),
        )

    def todo(self, begun: Tensor) -> Tensor:
        """Rows that are neither finished nor among those that are being searched."""
        return self.due[~torch.isin(self.due, torch.cat((self.done, begun)))]

    def told(self, run: StageRun, stage: AttackSpec) -> RunCounts:
        """For the record: of a ``run`` of ``stage``."""
        return RunCounts(
            stage=run.stage,
            attack=stage.attack,
            recheck=run.recheck,
            listed=len(self.due) > 0 or (run.subset == "all" and not run.recheck),
            result=StageResult(
                name=stage.name,
                search=self.searched_on,
                attempted=0 if self.skipped else len(self.due),
                broken=self.broken,
                errored=self.errored,
                forwards=self.forwards,
                backwards=self.backwards,
                seconds=self.seconds,
                skipped=self.skipped,
            ),
            searches=self.searches,
            zero_gradients=self.zero_gradients,
            nonfinite_gradients=self.nonfinite_gradients,
        )


@dataclass(frozen=True)
class CascadeState:
    """What a cascade did to each sample. Tensors are on the CPU, the sample is the first axis."""

    adv_inputs: Inputs
    stage: Tensor
    """int64 (n,): the stage that broke the sample, −1: none"""
    prediction: Tensor
    """int64 (n,): the verdict on ``adv_inputs``; −1 where no stage has an input to show, and
    ``adv_inputs`` holds nothing"""
    margin: Tensor
    """float32 (n,): the label's margin by that verdict, NaN where there is none"""
    size: Tensor
    """float32 (n,): the perturbation's norm, NaN where there is none"""
    closest_margin: Tensor
    found_size: Tensor
    forwards: Tensor
    backwards: Tensor
    search_margins: dict[int, Tensor] = field(default_factory=dict)
    """(n, searches) by stage: how close each came, +inf where it did not run to its end"""
    errors: dict[int, str] = field(default_factory=dict)
    phases: tuple[PhaseCounts, ...] = ()
    """Of the plan's stage runs, those that have begun"""
    audited: Tensor = field(default_factory=_no_rows)
    """int64: rows that the audit drew"""
    audit_survivors: int = -1
    """Samples that it drew from, −1: it has not begun"""
    stage_names: tuple[str, ...] = ()
    runs: tuple[RunCounts, ...] = ()
    """For the record, once the cascade has ended; so is ``audit``"""
    audit: AuditResult | None = None

    @classmethod
    def nothing_yet(cls, adv_inputs: Inputs) -> CascadeState:
        """Before the first stage, with room for an adversarial input of each sample."""
        count = len(adv_inputs)
        zeros, nan = torch.zeros(count, dtype=torch.int64), torch.full((count,), torch.nan)
        return cls(
            adv_inputs=adv_inputs,
            stage=zeros - 1,
            prediction=zeros - 1,
            margin=nan,
            size=nan,
            closest_margin=torch.full((count,), torch.inf),
            found_size=nan,
            forwards=zeros,
            backwards=zeros,
        )

    @property
    def stages(self) -> tuple[StageResult, ...]:
        """Those that the record lists."""
        return tuple(run.result for run in self.runs if run.listed)

    def survivors(self) -> Tensor:
        """Rows that are neither broken nor errored, int64."""
        alive = self.stage < 0
        if self.errors:
            alive[list(self.errors)] = False
        return alive.nonzero().squeeze(1)

    @property
    def shown(self) -> Tensor:
        """bool (n,): samples with an adversarial input; the others are undefined, not unchanged."""
        shown = self.prediction >= 0
        if self.errors:
            shown[list(self.errors)] = False
        return shown

    @property
    def passes_known(self) -> Tensor:
        """bool (n,): samples whose own passes were counted, each time that they were attacked."""
        known = torch.ones_like(self.stage, dtype=torch.bool)
        for counts in self.phases:
            if counts.shared:
                known[counts.due] = False
        return known

    @property
    def hits(self) -> int:
        """Audited samples that were broken."""
        return int((self.stage[self.audited] >= 0).sum())

    def with_phase(self, counts: PhaseCounts, new: bool = False) -> CascadeState:
        """With a further stage run, or with other counts of the last one."""
        return replace(self, phases=(*(self.phases if new else self.phases[:-1]), counts))

    def merged(self, rows: Tensor, result: SearchResult, stage: int) -> CascadeState:
        """With what the stage that runs now found for ``rows``."""
        broken, margins = result.broken.cpu(), result.closest_margin.cpu()
        before = self.closest_margin[rows]
        better = broken | (margins < before)
        kept = rows[better]
        self.adv_inputs[kept] = result.adv_inputs.cpu()[better]
        sizes, seen = result.found_size.cpu(), result.search_margins.cpu()
        table = self.search_margins.get(stage)
        if table is None:
            table = seen.new_full((len(self.stage), seen.shape[1]), torch.inf)
        return replace(
            self,
            closest_margin=self.closest_margin.index_copy(0, rows, torch.minimum(margins, before)),
            stage=self.stage.index_fill(0, rows[broken], stage),
            prediction=self.prediction.index_copy(0, kept, result.prediction.cpu()[better]),
            margin=self.margin.index_copy(0, kept, result.margin.cpu()[better]),
            size=self.size.index_copy(0, kept, result.size.cpu()[better]),
            found_size=self.found_size.index_copy(
                0, rows, torch.fmin(self.found_size[rows], sizes)
            ),
            forwards=self.forwards.index_add(0, rows, result.forwards.cpu()),
            backwards=self.backwards.index_add(0, rows, result.backwards.cpu()),
            search_margins={**self.search_margins, stage: table.index_copy(0, rows, seen)},
            errors=self.errors | {int(rows[i]): text for i, text in result.errors.items()},
            phases=(*self.phases[:-1], self.phases[-1].plus(rows, result)),
        )

    def content(self) -> dict[str, Any]:
        """Plain data and tensors for a snapshot, without what is added at the end; not copied."""
        plain = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, (Tensor, int)) or name in ("errors", "search_margins")
        }
        return plain | {"phases": [dict(vars(counts)) for counts in self.phases]}

    @classmethod
    def from_content(cls, content: dict[str, Any], adv_inputs: Inputs) -> CascadeState:
        """What :meth:`content` gave, with inputs that it did not hold because a file does."""
        phases = tuple(PhaseCounts(**counts) for counts in content["phases"])
        return cls(**({"adv_inputs": adv_inputs} | content | {"phases": phases}))
