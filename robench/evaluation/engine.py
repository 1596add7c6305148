"""The engine: keeps one batch of searches full until every sample is broken or done.

It owns the queue of (sample, rank), admits searches into free slots, asks the attack for a step,
has finds adjudicated, drops what is broken or finished, and counts passes. It knows nothing of
any particular attack.

The result does not depend on the batch size, on order, or on where a run was interrupted: draws
are keyed by sample, every search of a lower rank is finished before a find of a higher rank
counts, and the find of the lowest rank is the one that is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

import torch
from torch import Tensor

from robench.attacks.base import Attack, Slots, StateT, join, slot_keys, take
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.passes import Passes
from robench.evaluation.samples import Found, Samples
from robench.geometry import expand

__all__ = ["Engine", "Found", "Samples"]

_UNJUDGED = "the original model fails, or is not finite, at the search's candidate"

Progress = Callable[[int], None]
"""Called with the number of search steps that were completed or became unnecessary."""


class Engine(Generic[StateT]):
    """Runs one attack over samples.

    Args:
        attack: the state machine.
        passes: guarded, counted passes through the search's model.
        adjudicator: judges candidates with the original model.
        batch_size: slots.
        seed_tag: what the draws are keyed by besides the sample, usually the attack's name.
        judges_every_step: adjudicate every candidate, at one forward pass each; for attacks on
            another output of the model, whose margin says nothing certain about the final one.
    """

    def __init__(
        self,
        attack: Attack[StateT],
        passes: Passes,
        adjudicator: Adjudicator,
        *,
        batch_size: int,
        seed_tag: str | None = None,
        judges_every_step: bool = False,
    ) -> None:
        self.attack = attack
        self.passes = passes
        self.adjudicator = adjudicator
        self.batch_size = batch_size
        self.seed_tag = seed_tag or attack.name
        self.judges_every_step = judges_every_step

    @torch.no_grad()
    def run(
        self,
        samples: Samples,
        *,
        progress: Progress | None = None,
        snapshot: dict[str, Any] | None = None,
        save: Callable[[Callable[[], dict[str, Any]]], None] | None = None,
    ) -> Found:
        """Search until every sample is broken or all its searches are done.

        Args:
            samples: the samples, correctly classified ones.
            progress: told about completed steps; their sum is ``total_steps``.
            snapshot: what ``save`` received in an interrupted run of the same attack and samples.
            save: called after each step with a function that makes a snapshot, plain data and
                tensors; it decides when to make and keep one.
        """
        run = _Run(self, samples, progress)
        if snapshot is not None:
            run.restore(snapshot)
        while run.admit():
            run.step()
            if save is not None:
                save(run.snapshot)
        return run.conclude()

    def total_steps(self, samples: Samples) -> int:
        """Steps of all searches, if none ends early."""
        ranks = self.attack.ranks(samples.clean_logits.shape[1])
        return len(samples) * ranks * self.attack.steps()


class _Run(Generic[StateT]):
    """The bookkeeping of one run: who is in which slot, and what is known of each sample."""

    def __init__(self, engine: Engine[StateT], samples: Samples, progress: Progress | None) -> None:
        self.engine = engine
        self.attack = engine.attack
        self.passes = engine.passes
        self.samples = samples
        self.progress = progress
        self.device = samples.inputs.device
        self.ranks = self.attack.ranks(samples.clean_logits.shape[1])
        self.next_item = 0  # items are ordered by rank, then by sample
        count = len(samples)
        unbroken = torch.full((count,), self.ranks, dtype=torch.int64, device=self.device)
        self.broken_rank = unbroken
        """The lowest rank that settled the sample, by a find or by a failure"""
        zeros = torch.zeros(count, dtype=torch.int64, device=self.device)
        self.found = Found(
            adv_inputs=samples.inputs.clone(),
            broken=zeros.bool(),
            rank=zeros - 1,
            closest_margin=torch.full((count,), torch.inf, device=self.device),
            found_size=torch.full((count,), torch.nan, device=self.device),
            forwards=zeros.clone(),
            backwards=zeros.clone(),
        )
        self.errored = zeros.bool()
        self.closest_rank = unbroken.clone()
        self.state: StateT | None = None
        self.sample = zeros[:0]
        self.rank = zeros[:0]
        self.best = samples.inputs[:0]
        self.best_margin = self.found.closest_margin[:0]
        self.checked_margin = self.found.closest_margin[:0]

    # --- slots in --------------------------------------------------------------------------

    def admit(self) -> bool:
        """Fill free slots from the queue; False when nothing is left to do."""
        count = len(self.samples)
        last = count * self.ranks
        while self.next_item < last:
            # Counted anew each time: a start may settle its searches at once.
            free = self.engine.batch_size - len(self.sample)
            # A handful of starts is a poor batch; wait until an eighth of the slots is free.
            if len(self.sample) and free < max(1, self.engine.batch_size // 8):
                break
            items = torch.arange(
                self.next_item, min(self.next_item + free, last), device=self.device
            )
            self.next_item = int(items[-1]) + 1
            sample, rank = items % count, items // count
            needed = rank < self.broken_rank[sample]
            self._tell(int((~needed).sum()) * self.attack.steps())
            if bool(needed.any()):
                self._start(sample[needed], rank[needed])
        return len(self.sample) > 0

    def _start(self, sample: Tensor, rank: Tensor) -> None:
        chosen = self.samples.at(sample)
        slots = Slots(
            inputs=chosen.inputs,
            labels=chosen.labels,
            clean_logits=chosen.clean_logits,
            keys=slot_keys(chosen.keys, self.engine.seed_tag, rank),
            ranks=rank,
        )
        self.passes.reset(len(sample), self.device)
        self.passes.watch_gradients = True
        state = self.attack.start(self.passes, slots)
        self.passes.watch_gradients = False
        self._count(sample)
        self._note_failures(sample, rank)
        infinite = torch.full_like(state.margin, torch.inf)
        first = self.state is None or len(self.sample) == 0
        self.state = state if first or self.state is None else join([self.state, state])
        self.sample = torch.cat((self.sample, sample))
        self.rank = torch.cat((self.rank, rank))
        self.best = torch.cat((self.best, chosen.inputs))
        self.best_margin = torch.cat((self.best_margin, infinite))
        self.checked_margin = torch.cat((self.checked_margin, infinite))
        self._settle()

    # --- one step --------------------------------------------------------------------------

    def step(self) -> None:
        """One step of every active search."""
        state = self.state
        if state is None:
            return
        self.passes.reset(len(self.sample), self.device)
        before = int(state.step.sum())
        self.state = self.attack.step(self.passes, state)
        self._tell(int(self.state.step.sum()) - before)
        self._count(self.sample)
        self._note_failures(self.sample, self.rank)
        self._settle()

    def _settle(self) -> None:
        """Remember the best points, have candidates judged, and free the slots that are done."""
        state = self.state
        if state is None:
            return
        finished = self.attack.finished(state)
        better = state.margin < self.best_margin
        if bool(better.any()):
            self.best = torch.where(expand(better, self.best), state.candidate, self.best)
            self.best_margin = torch.where(better, state.margin, self.best_margin)
        crossed = state.margin <= 0
        if self.engine.judges_every_step:
            crossed = state.margin.isfinite()
            self.found.forwards.index_add_(0, self.sample, crossed.long())
        if self.attack.runs_to_the_end:
            crossed = crossed & finished
        done = finished
        if bool(crossed.any()):
            rows = crossed.nonzero().squeeze(1)
            done = done | self._judge(rows, state.candidate[rows], state.margin[rows])
        # Near the boundary the search's own precision cannot tell which side it was on, so the
        # nearest point of a search that ends without a find is judged as well.
        tolerance = self.passes.model.tolerance
        near = finished & (self.best_margin <= tolerance)
        near = near & (self.best_margin < self.checked_margin)
        if bool(near.any()):
            rows = near.nonzero().squeeze(1)
            self._judge(rows, self.best[rows], self.best_margin[rows])
        settled = self.broken_rank[self.sample]
        failed = self.errored[self.sample] & (self.rank == settled)
        done = done | (self.rank > settled) | failed
        if bool(done.any()):
            self._retire(done)

    def _judge(self, rows: Tensor, points: Tensor, margins: Tensor) -> Tensor:
        """Adjudicate points of ``rows``; bool (B,): searches that are over."""
        over = torch.zeros_like(self.rank, dtype=torch.bool)
        sample = self.sample[rows]
        verdicts = self.engine.adjudicator.judge(
            points, self.samples.inputs[sample], self.samples.labels[sample]
        )
        self.checked_margin[rows] = torch.minimum(self.checked_margin[rows], margins)
        broken = verdicts.broken
        self.found.unverified += int((~broken & (margins <= 0)).sum())
        over[rows[broken]] = True
        for position in (verdicts.allowed & ~verdicts.finite).nonzero().squeeze(1).tolist():
            self._fail(int(sample[position]), int(self.rank[rows[position]]), _UNJUDGED)
        for position in broken.nonzero().squeeze(1).tolist():
            index, rank = int(sample[position]), int(self.rank[rows[position]])
            if rank < int(self.broken_rank[index]):
                self.broken_rank[index] = rank
                self.errored[index] = False
                self.found.errors.pop(index, None)
                self.found.adv_inputs[index] = points[position]
        return over

    def _retire(self, done: Tensor) -> None:
        state = self.state
        if state is None:
            return
        self._keep_closest(done)
        sizes = getattr(state, "found_size", None)
        if sizes is not None:
            self.found.found_size[self.sample[done]] = sizes[done]
        left = (self.attack.steps() - state.step[done]).clamp_min(0)
        self._tell(int(left.sum()))
        kept = (~done).nonzero().squeeze(1)
        self.state = take(state, kept)
        self.sample, self.rank = self.sample[kept], self.rank[kept]
        self.best, self.best_margin = self.best[kept], self.best_margin[kept]
        self.checked_margin = self.checked_margin[kept]

    def _keep_closest(self, done: Tensor) -> None:
        """For samples that are not broken: the smallest margin, of equals the lowest rank."""
        for slot in done.nonzero().squeeze(1).tolist():
            index, rank = int(self.sample[slot]), int(self.rank[slot])
            if int(self.broken_rank[index]) < self.ranks:
                continue
            mine = (float(self.best_margin[slot]), rank)
            if mine < (float(self.found.closest_margin[index]), int(self.closest_rank[index])):
                self.found.closest_margin[index] = self.best_margin[slot]
                self.closest_rank[index] = rank
                self.found.adv_inputs[index] = self.best[slot]

    def _count(self, sample: Tensor) -> None:
        self.found.forwards.index_add_(0, sample, self.passes.forwards)
        self.found.backwards.index_add_(0, sample, self.passes.backwards)

    def _note_failures(self, sample: Tensor, rank: Tensor) -> None:
        """A failure settles a sample as a find does: only searches of a lower rank go on.

        Whether those run before or beside the failing one depends on the batch, and must not
        change the outcome.
        """
        for slot, message in self.passes.failures.items():
            self._fail(int(sample[slot]), int(rank[slot]), message)

    def _fail(self, index: int, rank: int, message: str) -> None:
        if rank < int(self.broken_rank[index]):
            self.broken_rank[index] = rank
            self.errored[index] = True
            self.found.errors[index] = message

    def _tell(self, steps: int) -> None:
        if self.progress is not None and steps:
            self.progress(steps)

    # --- the end, and interruptions --------------------------------------------------------

    def conclude(self) -> Found:
        """The verdicts by sample."""
        found = self.found
        found.zero_gradients = self.passes.zero_gradients
        found.nonfinite_gradients = self.passes.nonfinite_gradients
        survived = self.broken_rank == self.ranks
        broken = ~survived & ~self.errored
        found.broken = broken
        found.rank = torch.where(broken, self.broken_rank, -1)
        # What the searches beside the deciding one had seen depends on the batch.
        found.closest_margin[~survived] = torch.inf
        found.adv_inputs[self.errored] = self.samples.inputs[self.errored]
        self._judge_closest(survived)
        return found

    def _judge_closest(self, survived: Tensor) -> None:
        """The original model has the last word on the closest point of every survivor."""
        found = self.found
        rows = (survived & found.closest_margin.isfinite()).nonzero().squeeze(1)
        if len(rows) == 0:
            return
        verdicts = self.engine.adjudicator.judge(
            found.adv_inputs[rows], self.samples.inputs[rows], self.samples.labels[rows]
        )
        caught = rows[verdicts.broken]
        found.broken[caught] = True
        found.rank[caught] = self.closest_rank[caught]
        for index in rows[verdicts.allowed & ~verdicts.finite].tolist():
            found.errors[index] = _UNJUDGED

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here: plain data and tensors, all of them copies."""
        content = {
            "next_item": self.next_item,
            "ranks": self.ranks,
            "slots": [self.sample, self.rank, self.best, self.best_margin, self.checked_margin],
            "samples": [self.broken_rank, self.closest_rank, self.errored],
            "found": dict(vars(self.found)),
            "counters": [self.passes.zero_gradients, self.passes.nonfinite_gradients],
            "state": None if self.state is None else dict(vars(self.state)),
        }
        return {name: _copied(part) for name, part in content.items()}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot of the same attack on the same samples; it is not changed."""
        snapshot = _copied(snapshot)
        self.next_item = snapshot["next_item"]
        self.sample, self.rank, self.best, self.best_margin, self.checked_margin = (
            part.to(self.device) for part in snapshot["slots"]
        )
        self.broken_rank, self.closest_rank, self.errored = (
            part.to(self.device) for part in snapshot["samples"]
        )
        for name, value in snapshot["found"].items():
            on_device = value.to(self.device) if isinstance(value, Tensor) else value
            setattr(self.found, name, on_device)
        self.passes.zero_gradients, self.passes.nonfinite_gradients = snapshot["counters"]
        if snapshot["state"] is not None:
            self.state = self._empty_state(snapshot["state"])
        self._tell(self._steps_behind())

    def _empty_state(self, content: dict[str, Any]) -> StateT:
        # Only the attack knows its state's type; an empty start tells it.
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        chosen = self.samples.at(none)
        slots = Slots(chosen.inputs, chosen.labels, chosen.clean_logits, none, none)
        state = self.attack.start(self.passes, slots)
        for name, value in content.items():
            setattr(state, name, value.to(self.device) if isinstance(value, Tensor) else value)
        return state

    def _steps_behind(self) -> int:
        total = self.next_item * self.attack.steps()
        if self.state is None:
            return total
        return total - int((self.attack.steps() - self.state.step).sum())


def _copied(content: Any) -> Any:
    """Plain data and tensors that later steps of the run cannot change."""
    if isinstance(content, Tensor):
        return content.clone()
    if isinstance(content, dict):
        return {name: _copied(part) for name, part in content.items()}
    return [_copied(part) for part in content] if isinstance(content, list) else content
