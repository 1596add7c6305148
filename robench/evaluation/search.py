"""The search: keeps one batch of an attack's searches full until every sample is broken or done.

It owns the queue of (sample, search), admits searches into free slots, asks the attack for a step,
has finds adjudicated, drops what is broken or finished, and counts passes. It knows nothing of
any particular attack.

The result does not depend on the batch size, on order, or on where a run was interrupted: draws
are keyed by sample, every earlier search of a sample is finished before a find of a later one
counts, and the find of the earliest search is the one that is kept.

Tensors are replaced, never changed in place. So a snapshot is a handful of references that is
taken after every step, and an interruption in the midst of one leaves it whole.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Generic

import torch
from torch import Tensor

from robench.attacks.base import Attack, Slots, StateT, join, slot_keys, take
from robench.evaluation.active_searches import Active
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.queries import Queries
from robench.evaluation.samples import Samples, SearchResult
from robench.evaluation.search_order import SearchOrder
from robench.evaluation.traces import Tracer
from robench.execution import Progress, Save

_UNJUDGED = "the original model fails, or is not finite, at the search's candidate"


class Search(Generic[StateT]):
    """Runs one attack over samples.

    Args:
        attack: the state machine.
        queries: guarded, counted passes through the search's model.
        adjudicator: judges candidates with the original model.
        samples: the samples, correctly classified ones.
        batch_size: slots.
        seed_tag: what the draws are keyed by besides the sample; None: the attack's name.
        judges_every_step: adjudicate every candidate, at one forward pass each; for attacks on
            another output of the model, whose margin says nothing certain about the final one.
        only: bool (n, searches), the searches that are wanted; None: all.
        ranking: passes by which searches are put in order; None: ``queries``.
        tracer: is told what the searches see at each step.
    """

    def __init__(
        self,
        attack: Attack[StateT],
        queries: Queries,
        adjudicator: Adjudicator,
        samples: Samples,
        *,
        batch_size: int,
        seed_tag: str | None = None,
        judges_every_step: bool = False,
        only: Tensor | None = None,
        ranking: Queries | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.attack = attack
        self.tracer = tracer
        if tracer is not None:
            queries.watch_gradients()
        self.queries = queries
        self.order = SearchOrder(attack, queries if ranking is None else ranking)
        self.adjudicator = adjudicator
        self.samples = samples
        self.batch_size = batch_size
        self.seed_tag = attack.name if seed_tag is None else seed_tag
        self.judges_every_step = judges_every_step
        self.only = only
        self.progress: Progress | None = None
        self.device = samples.inputs.device
        self.searches = attack.searches(samples.clean_logits.shape[1])
        self.next_item = 0  # items are ordered by search, then by sample
        self.active: Active[StateT] | None = None
        self.parked: tuple[Active[StateT], ...] = ()
        self.result = SearchResult.nothing_yet(samples, self.searches)
        self._fresh = False
        self._starts_with_gradient = False
        self._mark_boundary()

    @torch.no_grad()
    def run(
        self,
        snapshot: dict[str, Any] | None = None,
        *,
        save: Save | None = None,
        progress: Progress | None = None,
    ) -> SearchResult:
        """Search until every sample is broken or all its searches are done.

        Args:
            snapshot: what ``save`` received in an interrupted run of the same attack and samples.
            save: called after each step with :meth:`snapshot`; decides whether to keep one.
            progress: told about completed steps; their sum is that of all searches.
        """
        self.progress = progress
        if snapshot is not None:
            self._restore(snapshot)
        while (active := self._admit()) is not None:
            self._step(active)
            self._mark_boundary()
            if save is not None:
                save(self.snapshot)
        return self._conclude()

    # --- slots in --------------------------------------------------------------------------

    def _admit(self) -> Active[StateT] | None:
        """Fill free slots from the queue; None when nothing is left to do."""
        count = len(self.samples)
        last = count * self.searches
        while self.next_item < last:
            # Counted anew each time: a start may settle its searches at once.
            taken = 0 if self.active is None else len(self.active)
            free = self.batch_size - taken - self._waiting()
            # A handful of starts is a poor batch; wait until an eighth of the slots is free.
            if taken and free < max(1, self.batch_size // 8):
                break
            end = min(self.next_item + free, last)
            items = torch.arange(self.next_item, end, device=self.device)
            self.next_item = end
            sample, search = items % count, items // count
            needed = search < self.result.settled[sample]
            if self.only is not None:
                needed = needed & self.only[sample, search]
            self._report(int((~needed).sum()) * self.attack.most_steps())
            if bool(needed.any()):
                self._start(sample[needed], search[needed])
        return self.active if self.active is not None and len(self.active) else None

    def _start(self, sample: Tensor, search: Tensor) -> None:
        chosen = self.samples.at(sample)
        number = self.order.number(chosen, sample, search, self.result)
        slots = Slots(
            inputs=chosen.inputs,
            labels=chosen.labels,
            clean_logits=chosen.clean_logits,
            keys=slot_keys(chosen.keys, self.seed_tag, number),
            search=number,
            others=chosen.others,
        )
        self.queries.reset(len(sample), self.device)
        self.queries.watch_first_gradients()
        state = self.attack.start(self.queries, slots)
        self._fresh, self._starts_with_gradient = True, bool(self.queries.backwards.any())
        infinite = torch.full_like(state.margin, torch.inf)
        active = Active(state, sample, search, chosen.inputs, infinite, infinite)
        self._note_queries(active)
        before = self.active
        if before is None or len(before) == 0:
            self.active = self._settle(active)
        else:
            self.active = self._settle(join([before, active]), settled=len(before))

    # --- one step --------------------------------------------------------------------------

    def _step(self, active: Active[StateT]) -> None:
        """One step of every active search."""
        before = active.state.step
        self.queries.reset(len(active), self.device)
        if self._fresh and not self._starts_with_gradient:
            self.queries.watch_first_gradients(before == 0)
        self._fresh = False
        state = self.attack.step(self.queries, active.state)
        self._report(int((state.step - before).sum()))
        active = replace(active, state=state)
        self._note_queries(active)
        self.active = self._settle(active)

    def _settle(self, active: Active[StateT], settled: int = 0) -> Active[StateT]:
        """Remember the best points, have candidates judged, and free the slots that are done.

        Args:
            active: the searches.
            settled: so many of the first were settled at this point before.
        """
        active = active.with_best()
        state, finished = active.state, self.attack.finished(active.state)
        crossed = state.margin.isfinite() if self.judges_every_step else state.margin <= 0
        if settled:
            crossed[:settled] = False
        if self.attack.runs_to_the_end:
            crossed = crossed & finished
        elif not self.judges_every_step:
            return self._park(active, crossed, finished)
        if bool(crossed.any()):
            rows = crossed.nonzero().squeeze(1)
            if self.judges_every_step:
                self.result.count_passes(active.sample[rows], torch.ones_like(rows))
            active, over = self._judge(active, rows, state.candidate[rows], state.margin[rows])
            finished = finished | over
        return self._close(active, finished)

    def _close(self, active: Active[StateT], done: Tensor) -> Active[StateT]:
        """Free the slots that are done, or that others have made needless."""
        # Near the boundary the search's own precision cannot tell which side it was on, so the
        # nearest point of a search that ends without a find is judged as well.
        near = done & (active.best_margin <= self.queries.model.tolerance)
        near = near & (active.best_margin < active.checked_margin)
        if bool(near.any()):
            rows = near.nonzero().squeeze(1)
            active, _ = self._judge(active, rows, active.best[rows], active.best_margin[rows])
        result = self.result
        settled = result.settled[active.sample]
        done = done | (active.search > settled)
        if result.errors:
            done = done | (result.errored[active.sample] & (active.search == settled))
        return self._retire(active, done) if bool(done.any()) else active

    def _retire(self, active: Active[StateT], done: Tensor) -> Active[StateT]:
        """Keep how close the searches that are done came, and free their slots."""
        result, state, sample, search = self.result, active.state, active.sample, active.search
        alive = (done & (result.settled[sample] >= self.searches)).nonzero().squeeze(1)
        if len(alive):
            result.keep_closest(
                sample[alive], search[alive], active.best_margin[alive], active.best[alive]
            )
        nearest = active.best_margin
        if state.border_margin is not None:
            nearest = torch.minimum(nearest, state.border_margin)
        result.search_margins = result.search_margins.index_put(
            (sample[done], search[done]), nearest[done]
        )
        if state.found_at is not None:
            self._measure(sample[done], state.found_at[done])
        self._report(int((self.attack.most_steps() - state.step[done]).clamp_min(0).sum()))
        return take(active, ~done)

    def _measure(self, sample: Tensor, points: Tensor) -> None:
        """Have minimum-norm searches' smallest finds judged, in the ball or out of it."""
        result, samples = self.result, self.samples.at(sample)
        verdicts = self.adjudicator.judge(points, samples.inputs, samples.labels)
        size = torch.where(verdicts.fooled, verdicts.size, torch.inf)
        result.found_size = result.found_size.index_put((sample,), size)

    def _park(self, active: Active[StateT], crossed: Tensor, finished: Tensor) -> Active[StateT]:
        """Set searches with a find aside, to be judged together: a few inputs are a poor batch."""
        if bool(crossed.any()):
            self.parked = (*self.parked, take(active, crossed))
            active, finished = take(active, ~crossed), finished[~crossed]
        active = self._close(active, finished)
        waiting = self._waiting()
        if waiting and waiting >= min(len(active), self.batch_size // 16):
            active = self._unpark(active, waiting)
        return active

    def _waiting(self) -> int:
        return sum(len(parked) for parked in self.parked)

    def _unpark(self, active: Active[StateT], waiting: int) -> Active[StateT]:
        """Judge the finds that were set aside; those that fail go on searching."""
        rows = torch.arange(len(active), len(active) + waiting, device=self.device)
        active, self.parked = join([active, *self.parked]), ()
        state = active.state
        active, over = self._judge(active, rows, state.candidate[rows], state.margin[rows])
        return self._close(active, over | self.attack.finished(state))

    def _judge(
        self, active: Active[StateT], rows: Tensor, points: Tensor, margins: Tensor
    ) -> tuple[Active[StateT], Tensor]:
        """Adjudicate points of ``rows``; the searches, and bool (B,) those that are over."""
        sample, search = active.sample[rows], active.search[rows]
        verdicts = self.adjudicator.judge(
            points, self.samples.inputs[sample], self.samples.labels[sample]
        )
        broken = verdicts.broken
        for at in (verdicts.allowed & ~verdicts.finite).nonzero().squeeze(1).tolist():
            self.result.fail(int(sample[at]), int(search[at]), _UNJUDGED)
        self.result.keep_finds(sample[broken], search[broken], points[broken], verdicts.at(broken))
        checked = torch.minimum(active.checked_margin[rows], margins)
        checked = active.checked_margin.index_copy(0, rows, checked)
        over = torch.zeros_like(active.search, dtype=torch.bool).index_copy(0, rows, broken)
        return replace(active, checked_margin=checked), over

    def _note_queries(self, active: Active[StateT]) -> None:
        """Count the passes of a step, note failures, gradients that lead nowhere, and the trace."""
        result, queries = self.result, self.queries
        result.count_passes(active.sample, queries.forwards, queries.backwards)
        if (zero := queries.zero_first_gradients()) is not None:
            result.zero_gradient = _marked(result.zero_gradient, active, zero)
        if queries.nonfinite is not None:
            result.nonfinite = _marked(result.nonfinite, active, queries.nonfinite)
        for slot, message in queries.failures.items():
            result.fail(int(active.sample[slot]), int(active.search[slot]), message)
        if self.tracer is not None:
            self.tracer.note(active, queries)

    def _report(self, steps: int) -> None:
        if self.progress is not None and steps:
            self.progress(steps)

    # --- the end, and interruptions --------------------------------------------------------

    def _conclude(self) -> SearchResult:
        """The verdicts by sample; on a survivor's closest point the original has the last word."""
        result = self.result
        survived = result.settled == self.searches
        result.forget(result.errored, self.samples.inputs)
        # What the searches beside the deciding one had seen depends on the batch.
        result.closest_margin = torch.where(survived, result.closest_margin, torch.inf)
        rows = (survived & result.closest_margin.isfinite()).nonzero().squeeze(1)
        if len(rows):
            points = result.adv_inputs[rows]
            verdicts = self.adjudicator.judge(
                points, self.samples.inputs[rows], self.samples.labels[rows]
            )
            shown, caught = verdicts.shown, rows[verdicts.broken]
            result.keep(rows[shown], points[shown], verdicts.at(shown))
            result.settled = result.settled.index_copy(0, caught, result.closest_search[caught])
            for index in rows[verdicts.allowed & ~verdicts.finite].tolist():
                result.errors = {**result.errors, index: _UNJUDGED}
        result.forget(result.prediction < 0, self.samples.inputs)
        # What broke a sample is a find, whichever verdict came first.
        known = result.broken & ~result.found_size.isnan()
        size = torch.where(known, result.size, torch.inf)
        result.found_size = torch.minimum(result.found_size, size)
        if self.tracer is not None:
            self.tracer.end(result)
        return result

    def _mark_boundary(self) -> None:
        """From here an interrupted search goes on: one assignment, so it is whole or not made."""
        found = dict(vars(self.result))
        self._boundary = (self.next_item, self.active, self.parked, self.order.numbers, found)

    def snapshot(self) -> dict[str, Any]:
        """Everything needed to go on from the last step: plain data and tensors, not copied."""
        if self.tracer is not None:
            self.tracer.flush()
        next_item, active, parked, order, result = self._boundary
        under_way = () if active is None else (active, *parked)
        contents = [{**vars(part), "state": dict(vars(part.state))} for part in under_way]
        return {
            "next_item": next_item,
            "under_way": contents,
            "order": order,
            "result": result,
        }

    def _restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot of the same attack on the same samples; it is not changed."""
        under_way = [self._active(content) for content in snapshot["under_way"]]
        self.next_item = snapshot["next_item"]
        self.active, self.parked = next(iter(under_way), None), tuple(under_way[1:])
        self.order.numbers = self._on_device(snapshot)["order"]
        self.result = SearchResult(**self._on_device(snapshot["result"]))
        self._mark_boundary()
        steps = self.attack.most_steps()
        left = sum(int((steps - part.state.step).sum()) for part in under_way)
        self._report(self.next_item * steps - left)

    def _active(self, content: dict[str, Any]) -> Active[StateT]:
        state = self.attack.state_type(**self._on_device(content["state"]))
        return Active(**{**self._on_device(content), "state": state})

    def _on_device(self, content: dict[str, Any]) -> dict[str, Any]:
        tensors = {n: v.to(self.device) for n, v in content.items() if isinstance(v, Tensor)}
        return {**content, **tensors}


def _marked(table: Tensor, active: Active[Any], slots: Tensor) -> Tensor:
    """bool (n, searches) with the searches in ``slots``, bool (B,), marked."""
    yes = torch.ones((), dtype=torch.bool, device=table.device)
    return table.index_put((active.sample[slots], active.search[slots]), yes)
