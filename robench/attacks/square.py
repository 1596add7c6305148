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
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.base import AttackKind, Query, Slots, State, fresh, take
from robench.attacks.losses import margin
from robench.attacks.square_proposals import Moves, Patches, Proposals
from robench.errors import AttackError
from robench.geometry import expand
from robench.threat_models import Norm, ThreatModel

_PROPOSALS: dict[Norm, type[Proposals]] = {"Linf": Patches, "L2": Moves, "L1": Moves}
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


class Square:
    """Square attack for Linf, L2 and L1 on the margin.

    Args:
        threat_model: the ball.
        queries: forward passes after the first.
        initial_share: share of the image that the first window covers.
        rescale_schedule: stretch the window schedule to the number of queries.

    Raises:
        AttackError: a parameter that makes no sense.
    """

    runs_to_the_end = False
    kind: AttackKind = "query"
    state_type = SquareState

    def __init__(
        self,
        threat_model: ThreatModel,
        *,
        name: str = "square",
        queries: int = 5000,
        initial_share: float = 0.8,
        rescale_schedule: bool = False,
    ) -> None:
        if queries < 1 or not 0 < initial_share <= 1:
            raise AttackError(f"{name}: queries must be at least 1, initial_share in (0, 1]")
        self.name = name
        self.threat_model = threat_model
        self.queries = queries
        self.initial_share = initial_share
        self.rescale_schedule = rescale_schedule
        self._proposals = _PROPOSALS[threat_model.norm]

    def searches(self, num_classes: int) -> int:
        """A single search."""
        return 1

    def steps(self) -> int:
        """Queries after the first."""
        return self.queries

    def start(self, query: Query, slots: Slots) -> SquareState:
        """Linf: vertical stripes of ±ε; L2, L1: a grid of signed windows. One forward pass."""
        inputs = slots.inputs
        best = self._proposals.starting_points(inputs, self.threat_model, slots.keys)
        seen = margin(query.logits(best), slots.labels)
        memory = self._proposals.count(inputs.shape[1:])
        count, useful = len(slots.labels), memory <= _LARGEST_MEMORY
        first = {
            "keys": seeding.derive(slots.keys, seeding.tag("square windows")),
            "candidate": best,
            "margin": seen,
        }
        return SquareState(
            **fresh(slots) | first,
            best=best,
            best_margin=seen,
            window=torch.zeros_like(slots.labels),
            tried=torch.zeros(count, memory if useful else 0, dtype=torch.bool, device=best.device),
            rejected=torch.zeros_like(slots.labels),
            asked=torch.zeros_like(slots.labels),
            lookahead=torch.full_like(slots.labels, _AT_ONCE),
        )

    def _sizes(self, state: SquareState) -> Tensor:
        """Window side at every query: int64 (queries + 1,)."""
        height, width = state.inputs.shape[2:]
        return _window_sizes(
            self.queries,
            self.initial_share,
            self.rescale_schedule,
            height,
            width,
            self._proposals.smallest,
            self._proposals.has_centre,
        ).to(state.step.device)

    def step(self, query: Query, state: SquareState) -> SquareState:
        """Propose a change for each slot and keep it where the margin shrinks."""
        sizes = self._sizes(state)
        size = sizes[state.step]
        if not self._remembers(state):
            drawn = self._draw(state, state.keys, state.step, size)
            proposal = drawn.points(state.best, state.inputs, self.threat_model)
            return self._accept(query, replace(state, step=state.step + 1), proposal)
        fresh = state.window != size
        if bool(fresh.any()):
            state = replace(
                state,
                tried=state.tried & ~fresh[:, None],
                rejected=torch.where(fresh, 0, state.rejected),
                window=size,
            )
        ahead = self._unknown(state, sizes, size)
        best, inputs = state.best[ahead.rows], state.inputs[ahead.rows]
        proposal = ahead.proposals.points(best, inputs, self.threat_model)
        changed = (proposal != best).flatten(1).any(dim=1)
        places = (ahead.rows, ahead.proposals.identity)
        state = replace(
            state,
            tried=state.tried.index_put(places, torch.ones_like(ahead.rows, dtype=torch.bool)),
            rejected=state.rejected.index_add(0, ahead.rows, torch.ones_like(ahead.rows)),
            lookahead=torch.full_like(state.step, ahead.lookahead),
        )
        if not bool(changed.all()):  # known to be rejected, and now remembered
            ahead, proposal = ahead.at(changed), proposal[changed]
        if len(ahead.rows) == 0:
            step = state.step + ahead.reach
            return replace(state, step=step, margin=torch.full_like(state.margin, torch.inf))
        return self._accept_first(query, state, proposal, ahead)

    def _draw(self, state: SquareState, keys: Tensor, steps: Tensor, size: Tensor) -> Proposals:
        shape = state.inputs.shape[1:]
        return self._proposals.draw(seeding.derive(keys, steps), size, shape)

    def _remembers(self, state: SquareState) -> bool:
        return state.tried.shape[1] > 0

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
        first = places.new_full(state.tried.shape, window)
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
        seen = margin(query.logits(proposal, rows), state.labels[rows])
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

    def _accept(self, query: Query, state: SquareState, proposal: Tensor) -> SquareState:
        seen = margin(query.logits(proposal), state.labels)
        better = (seen < state.best_margin) | (seen <= 0)
        best = torch.where(expand(better, proposal), proposal, state.best)
        best_margin = torch.where(better, seen, state.best_margin)
        return replace(
            state, best=best, best_margin=best_margin, candidate=best, margin=best_margin
        )

    def finished(self, state: SquareState) -> Tensor:
        """All queries asked, or answered from memory."""
        return state.step >= self.queries


@dataclass
class _Ahead:
    """Proposals to be asked at once: by slot, and of each slot in the order of its queries."""

    rows: Tensor
    """int64 (P,): slots"""
    place: Tensor
    """int64 (P,): queries after the slot's ``step``"""
    proposals: Proposals
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


@lru_cache(maxsize=16)
def _window_sizes(
    queries: int,
    initial: float,
    rescale: bool,
    height: int,
    width: int,
    smallest: int,
    has_centre: bool,
) -> Tensor:
    sizes = []
    for query in range(queries + 1):
        share = window_share(query, initial, queries, rescale)
        side = max(round(math.sqrt(share * height * width)), smallest)
        if has_centre and side % 2 == 0:
            side += 1
        sizes.append(min(side, height, width))
    return torch.tensor(sizes, dtype=torch.int64)
