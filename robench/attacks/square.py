"""Square attack: random search over square windows, with forward passes only.

Andriushchenko, Croce, Flammarion & Hein, "Square attack: a query-efficient black-box adversarial
attack via random search", ECCV 2020; for L1 Croce & Hein, ICML 2021. Schedule, window positions
and acceptance rule are those of fra31/auto-attack (``square.py``) except that every sample draws
its own windows, so a result does not depend on its batch.

A proposal is one of finitely many: windows and signs. One that was rejected since the last
acceptance would be rejected again, and one that changes nothing cannot be accepted; both are
recognised and answered without a forward pass, on images so small that this happens often. Some
of the passes that this saves are spent on asking several queries of a search at once: all that
follow the first accepted one are thrown away and asked again at the new point. The search is the
reference's, query for query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.base import Attack, Query, Slots, State, limited, take
from robench.attacks.square_proposals import Moves, Patches
from robench.geometry import with_rows

_LARGEST_MEMORY = 1 << 14  # proposals a slot may remember; beyond, repetitions are too rare
_LOOKAHEAD = 64
_AT_ONCE = 8
"""Most queries of one search in a pass; after r rejections in a row, r/4 of them"""
_HASTE = 16
_SMALL_PASS = 256
"""Where a pass has fewer inputs, each search asks for a sixteenth of what memory has saved it: what
surrounds a small pass costs more than what is asked in vain"""

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def window_share(query: int, initial: float, queries: int, rescale: bool = False) -> float:
    """Share of the image that the window of the given query covers (the paper's p).

    It halves after 10, 50, 200, … of 10,000 queries; with ``rescale`` these marks are stretched
    to the actual budget. AutoAttack does not rescale.
    """
    position = int(query / queries * 10000) if rescale else query
    return initial * 0.5 ** sum(position > mark for mark in _HALVINGS)


@dataclass
class SquareState(State):
    """Square's slots; ``step`` counts queries after the first."""

    best: Tensor
    best_margin: Tensor
    window: Tensor
    """int64 (B,): the window size that ``tried`` speaks of"""
    tried: Tensor
    """bool (B, M): proposals known to be rejected at the current best point"""
    rejected: Tensor
    """int64 (B,): how many they are"""
    asked: Tensor
    """int64 (B,): forward passes, never more than queries"""
    lookahead: Tensor
    """int64 (B,): queries that the next step looks at; where slots differ, the most"""


@dataclass(eq=False, kw_only=True)
class Square(Attack[SquareState]):
    """Square attack for Linf, L2 and L1 on the margin."""

    can_target = True
    kind = "query"
    state_type = SquareState
    name: str = "square"
    queries: int = limited(5000, at_least=1)
    """Forward passes after the first"""
    initial_share: float = limited(0.8, above=0, at_most=1)
    """Share of the image that the first window covers"""
    rescale_schedule: bool = False
    """Stretch the window schedule to the number of queries"""

    @property
    def proposals(self) -> type[Patches | Moves]:
        """What is tried in the norm."""
        return Patches if self.norm == "Linf" else Moves

    def most_steps(self) -> int:
        """Queries after the first."""
        return self.queries

    def cost_changes(self, shape: Sequence[int]) -> list[int]:
        """Where the window's size changes: what is remembered is of one size."""
        sizes = _window_sizes(self, *shape[1:])
        return [0, *(1 + (sizes[1:-1] != sizes[:-2]).nonzero().squeeze(1)).tolist()]

    def start(self, query: Query, slots: Slots) -> SquareState:
        """Linf: vertical stripes of ±ε; L2, L1: a grid of signed windows. One forward pass."""
        inputs = slots.inputs
        best = self.proposals.starting_points(inputs, self.threat_model, slots.keys)
        seen = self.goal.margin(query.logits(best), slots.labels)
        memory = self.proposals.count(inputs.shape[1:])
        count, useful = len(slots.labels), memory <= _LARGEST_MEMORY
        first = {
            "keys": seeding.derive(slots.keys, seeding.tag("square windows")),
            "candidate": best,
            "margin": seen,
        }
        return SquareState(
            **slots.fresh() | first,
            best=best,
            best_margin=seen,
            window=torch.zeros_like(slots.labels),
            tried=torch.zeros(count, memory if useful else 0, dtype=torch.bool, device=best.device),
            rejected=torch.zeros_like(slots.labels),
            asked=torch.zeros_like(slots.labels),
            lookahead=torch.full_like(slots.labels, _AT_ONCE),
        )

    def step(self, query: Query, state: SquareState) -> SquareState:
        """Propose a change for each slot and keep it where the margin shrinks."""
        height, width = state.inputs.shape[2:]
        sizes = _window_sizes(self, height, width).to(state.step.device)
        size = sizes[state.step]
        if state.tried.shape[1] == 0:
            return self._ask_each(query, state, size)
        state = _forget_other_sizes(state, size)
        ahead = self._unknown(state, sizes, size)
        proposal, changed = ahead.proposals.points(
            state.best, state.inputs, self.threat_model, ahead.rows
        )
        places = (ahead.rows, ahead.proposals.identity)
        state = replace(
            state,
            tried=state.tried.index_put(places, torch.ones_like(ahead.rows, dtype=torch.bool)),
            rejected=state.rejected.index_add(0, ahead.rows, torch.ones_like(ahead.rows)),
            lookahead=torch.full_like(state.step, ahead.lookahead),
        )
        if not bool(changed.all()):  # known to be rejected, and now remembered
            kept = changed.nonzero().squeeze(1)
            ahead, proposal = ahead.at(kept), proposal.index_select(0, kept)
        if len(ahead.rows) == 0:
            step = state.step + ahead.reach
            return replace(state, step=step, margin=torch.full_like(state.margin, torch.inf))
        return self._accept_first(query, state, proposal, ahead)

    def _draw(
        self, state: SquareState, keys: Tensor, steps: Tensor, size: Tensor
    ) -> Patches | Moves:
        return self.proposals.draw(seeding.derive(keys, steps), size, state.inputs.shape[1:])

    def _ask_each(self, query: Query, state: SquareState, size: Tensor) -> SquareState:
        """One proposal of every slot, asked whatever was asked before."""
        drawn = self._draw(state, state.keys, state.step, size)
        everything = torch.arange(len(size), device=size.device)
        proposal, _ = drawn.points(
            state.best, state.inputs, self.threat_model, everything, compared=False
        )
        seen = self.goal.margin(query.logits(proposal), state.labels)
        better = (seen < state.best_margin) | (seen <= 0)
        best = with_rows(state.best, better, proposal)
        best_margin = torch.where(better, seen, state.best_margin)
        return replace(
            state,
            step=state.step + 1,
            asked=state.asked + 1,
            best=best,
            best_margin=best_margin,
            candidate=best,
            margin=best_margin,
        )

    def _unknown(self, state: SquareState, sizes: Tensor, size: Tensor) -> _Ahead:
        """The next proposals of every slot whose answers are not known yet."""
        count, window = len(size), int(state.lookahead.max())
        positions = torch.arange(window, device=size.device)
        steps = state.step[:, None] + positions
        # Only proposals of the same window size may be looked up in the same memory.
        valid = (steps < self.queries) & (sizes[steps.clamp(max=self.queries)] == size[:, None])
        drawn = self._draw(
            state,
            state.keys.repeat_interleave(window),
            steps.flatten(),
            size.repeat_interleave(window),
        )
        identity = drawn.identity.view(count, window)
        places = positions.to(torch.int16).expand_as(identity)
        # Of the many proposals that there are, only those that were drawn are looked up.
        first = places.new_empty(state.tried.shape).scatter_(1, identity, window)
        first.scatter_reduce_(1, identity, places, "amin")
        repeated = first.gather(1, identity) < places
        unknown = valid & ~state.tried.gather(1, identity) & ~repeated
        # The passes that memory has saved are what asking ahead may waste.
        saved = state.step - state.asked
        at_once = (state.rejected // 4).clamp(max=_AT_ONCE).minimum(saved).clamp_min(1)
        at_once = at_once.maximum((saved // _HASTE).clamp(max=_SMALL_PASS // count))
        order = unknown.cumsum(dim=1)
        chosen = unknown & (order <= at_once[:, None])
        full = order[:, -1] >= at_once
        last = torch.where(chosen, positions, 0).amax(dim=1)
        # The lookahead changes nothing but the number of passes over the slots.
        share = float(full.float().mean())
        longer, shorter = min(_LOOKAHEAD, window * 2), max(int(at_once.max()), window // 2)
        rows, place = chosen.nonzero(as_tuple=True)
        return _Ahead(
            rows=rows,
            place=place,
            proposals=take(drawn, rows * window + place),
            reach=torch.where(full, last + 1, valid.sum(dim=1)),
            lookahead=shorter if share > 0.9 else longer,
        )

    def _accept_first(
        self, query: Query, state: SquareState, proposal: Tensor, ahead: _Ahead
    ) -> SquareState:
        """Take the first proposal of each slot that is better, and forget what follows it."""
        rows, place = ahead.rows, ahead.place
        seen = self.goal.margin(query.logits(proposal, rows), state.labels[rows])
        better = (seen < state.best_margin[rows]) | (seen <= 0)
        none = torch.full_like(state.step, _LOOKAHEAD)
        first = none.scatter_reduce(0, rows[better], place[better], "amin")
        taken = better & (place == first[rows])
        winners = rows[taken]
        state.tried[winners] = False
        state.rejected[winners] = 0
        best = state.best.index_copy(0, winners, proposal[taken])
        best_margin = state.best_margin.index_copy(0, winners, seen[taken])
        return replace(
            state,
            step=state.step + torch.where(first < none, first + 1, ahead.reach),
            asked=state.asked.index_add(0, rows, torch.ones_like(rows)),
            best=best,
            best_margin=best_margin,
            candidate=best,
            margin=best_margin,
        )


@dataclass
class _Ahead:
    """Proposals to be asked at once: by slot, and of each slot in the order of its queries."""

    rows: Tensor
    """int64 (P,): slots"""
    place: Tensor
    """int64 (P,): queries after the slot's ``step``"""
    proposals: Patches | Moves
    reach: Tensor
    """int64 (B,): how far the slot gets if nothing is accepted"""
    lookahead: int
    """Queries that the next step should look at"""

    def at(self, chosen: Tensor) -> _Ahead:
        return replace(
            self,
            rows=self.rows[chosen],
            place=self.place[chosen],
            proposals=take(self.proposals, chosen),
        )


def _forget_other_sizes(state: SquareState, size: Tensor) -> SquareState:
    """Without what is remembered of windows that are not of ``size``, (B,)."""
    other = state.window != size
    if not bool(other.any()):
        return state
    return replace(
        state,
        tried=state.tried & ~other[:, None],
        rejected=torch.where(other, 0, state.rejected),
        window=size,
    )


@lru_cache(maxsize=16)
def _window_sizes(attack: Square, height: int, width: int) -> Tensor:
    """The window's side at every query: int64 (queries + 1,)."""
    sizes = []
    for query in range(attack.queries + 1):
        share = window_share(query, attack.initial_share, attack.queries, attack.rescale_schedule)
        side = max(round(math.sqrt(share * height * width)), attack.proposals.smallest)
        if attack.proposals.has_centre and side % 2 == 0:
            side += 1
        sizes.append(min(side, height, width))
    return torch.tensor(sizes, dtype=torch.int64)
