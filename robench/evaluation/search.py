"""One run of an attack over samples: who is in which slot, and what is known of each sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor

from robench.attacks.base import Slots, StateT, join, slot_keys, take
from robench.evaluation.adjudicate import Verdicts
from robench.evaluation.samples import Found, Samples
from robench.geometry import expand

if TYPE_CHECKING:
    from robench.evaluation.engine import Engine

__all__ = ["Progress", "Search"]

Progress = Callable[[int], None]
"""Called with the number of search steps that were completed or became unnecessary."""

_UNJUDGED = "the original model fails, or is not finite, at the search's candidate"


class Search(Generic[StateT]):
    """The bookkeeping of one run: who is in which slot, and what is known of each sample."""

    def __init__(
        self,
        engine: Engine[StateT],
        samples: Samples,
        progress: Progress | None,
        only: Tensor | None = None,
    ) -> None:
        self.engine = engine
        self.attack = engine.attack
        self.passes = engine.passes
        self.samples = samples
        self.progress = progress
        self.only = only
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
            prediction=zeros - 1,
            margin=torch.full((count,), torch.nan, device=self.device),
            size=torch.full((count,), torch.nan, device=self.device),
            closest_margin=torch.full((count,), torch.inf, device=self.device),
            found_size=torch.full((count,), torch.nan, device=self.device),
            forwards=zeros.clone(),
            backwards=zeros.clone(),
            rank_margins=torch.full((count, self.ranks), torch.inf, device=self.device),
        )
        self.errored = zeros.bool()
        self.closest_rank = unbroken.clone()
        self.state: StateT | None = None
        self.parked: list[tuple[StateT, Tensor, Tensor, Tensor, Tensor, Tensor]] = []
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
            free = self.engine.batch_size - len(self.sample) - self._waiting()
            # A handful of starts is a poor batch; wait until an eighth of the slots is free.
            if len(self.sample) and free < max(1, self.engine.batch_size // 8):
                break
            items = torch.arange(
                self.next_item, min(self.next_item + free, last), device=self.device
            )
            self.next_item = int(items[-1]) + 1
            sample, rank = items % count, items // count
            needed = rank < self.broken_rank[sample]
            if self.only is not None:
                needed = needed & self.only[sample, rank]
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
        done = finished
        if self.engine.judges_every_step:
            crossed = state.margin.isfinite()
            self.found.forwards.index_add_(0, self.sample, crossed.long())
        if self.attack.runs_to_the_end:
            crossed = crossed & finished
        elif not self.engine.judges_every_step:
            self._park(crossed)
            return
        if bool(crossed.any()):
            rows = crossed.nonzero().squeeze(1)
            done = done | self._judge(rows, state.candidate[rows], state.margin[rows])
        self._close(done)

    def _close(self, done: Tensor) -> None:
        """Free the slots that are done, or that others have made needless."""
        finished = done
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

    def _park(self, crossed: Tensor) -> None:
        """Set searches with a find aside, to be judged together: a few inputs are a poor batch."""
        state = self.state
        if state is None:
            return
        if bool(crossed.any()):
            found, going = (rows.nonzero().squeeze(1) for rows in (crossed, ~crossed))
            sample, rank, best, best_margin, checked = (part[found] for part in self._slots())
            self.parked.append((take(state, found), sample, rank, best, best_margin, checked))
            self.state = state = take(state, going)
            self._set_slots(part[going] for part in self._slots())
        self._close(self.attack.finished(state))
        waiting = self._waiting()
        if waiting and waiting >= min(len(self.sample), self.engine.batch_size // 16):
            self._unpark()

    def _waiting(self) -> int:
        return sum(len(sample) for _, sample, *_ in self.parked)

    def _unpark(self) -> None:
        """Judge the finds that were set aside; those that fail go on searching."""
        if not self.parked or self.state is None:
            return
        active = len(self.sample)
        self.state = state = join([self.state, *(parked[0] for parked in self.parked)])
        others = zip(*(parked[1:] for parked in self.parked), strict=True)
        self._set_slots(
            torch.cat((mine, *theirs)) for mine, theirs in zip(self._slots(), others, strict=True)
        )
        self.parked = []
        rows = torch.arange(active, len(self.sample), device=self.device)
        over = self._judge(rows, state.candidate[rows], state.margin[rows])
        self._close(over | self.attack.finished(state))

    def _slots(self) -> tuple[Tensor, ...]:
        return self.sample, self.rank, self.best, self.best_margin, self.checked_margin

    def _set_slots(self, parts: Iterable[Tensor]) -> None:
        self.sample, self.rank, self.best, self.best_margin, self.checked_margin = parts

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
        self._keep_finds(
            sample[broken], self.rank[rows[broken]], points[broken], verdicts.at(broken)
        )
        return over

    def _keep_finds(self, sample: Tensor, rank: Tensor, points: Tensor, verdicts: Verdicts) -> None:
        """Of each sample, the find of the lowest rank so far; (sample, rank) occurs only once."""
        before = self.broken_rank
        self.broken_rank = before.scatter_reduce(0, sample, rank, "amin")
        first = (rank == self.broken_rank[sample]) & (rank < before[sample])
        winners = sample[first]
        self.errored[winners] = False
        self.found.keep(winners, points[first], verdicts.at(first))
        if self.found.errors:
            for index in winners.tolist():
                self.found.errors.pop(index, None)

    def _retire(self, done: Tensor) -> None:
        state = self.state
        if state is None:
            return
        self._keep_closest(done)
        nearest = self.best_margin
        at_border = getattr(state, "border_margin", None)
        if at_border is not None:
            nearest = torch.minimum(nearest, at_border)
        self.found.rank_margins[self.sample[done], self.rank[done]] = nearest[done]
        sizes = getattr(state, "found_size", None)
        if sizes is not None:
            self.found.found_size[self.sample[done]] = sizes[done]
        left = (self.attack.steps() - state.step[done]).clamp_min(0)
        self._tell(int(left.sum()))
        kept = (~done).nonzero().squeeze(1)
        self.state = take(state, kept)
        self._set_slots(part[kept] for part in self._slots())

    def _keep_closest(self, done: Tensor) -> None:
        """For samples that are not broken: the smallest margin, of equals the lowest rank."""
        slots = (done & (self.broken_rank[self.sample] >= self.ranks)).nonzero().squeeze(1)
        if len(slots) == 0:
            return
        sample, rank, margins = self.sample[slots], self.rank[slots], self.best_margin[slots]
        before = self.found.closest_margin
        closest = before.scatter_reduce(0, sample, margins, "amin")
        # A sample whose margin got smaller forgets the rank that had the larger one.
        ranks = torch.where(closest < before, self.ranks, self.closest_rank)
        equal = margins == closest[sample]
        ranks = ranks.scatter_reduce(0, sample[equal], rank[equal], "amin")
        best = equal & (rank == ranks[sample])
        best = best & ((closest < before) | (ranks < self.closest_rank))[sample]
        self.found.closest_margin, self.closest_rank = closest, ranks
        self.found.adv_inputs[sample[best]] = self.best[slots[best]]

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
        found.forget(self.errored, self.samples.inputs)
        self._judge_closest(survived)
        found.forget(found.prediction < 0, self.samples.inputs)
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
        shown = verdicts.shown
        found.keep(rows[shown], found.adv_inputs[rows[shown]], verdicts.at(shown))
        caught = rows[verdicts.broken]
        found.broken[caught] = True
        found.rank[caught] = self.closest_rank[caught]
        for index in rows[verdicts.allowed & ~verdicts.finite].tolist():
            found.errors[index] = _UNJUDGED

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from here: plain data and tensors, all of them copies."""
        self._unpark()
        content = {
            "next_item": self.next_item,
            "ranks": self.ranks,
            "slots": list(self._slots()),
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
        self._set_slots(part.to(self.device) for part in snapshot["slots"])
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
