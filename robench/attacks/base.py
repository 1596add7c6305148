"""What an attack is: a state machine over slots, driven by a loop it knows nothing of.

A *slot* holds one search for one sample; a sample has as many searches as there are targets and
restarts. Every tensor of a state has the slot as its first axis, so that the loop can drop
finished slots and fill in new ones between any two steps. An attack asks for passes through a
:class:`Query`, moves its points, and *proposes* a candidate with the margin it saw; it never
decides anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.losses import Loss
from robench.threat_models import ThreatModel

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


class Gradient(NamedTuple):
    """What one forward and one backward pass tell of each point."""

    logits: Tensor
    """float32 (B, K)"""
    losses: Tensor
    """float32 (B,)"""
    gradient: Tensor
    """float32, the points' shape: d loss / d point"""


class Query(Protocol):
    """The engine's side: passes through the model, counted for each slot.

    ``rows`` names the slots that the given points belong to, int64 (B,); None: all, in order. A
    slot may be named more than once.
    """

    def logits(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """One forward pass: (B, C, H, W) → float32 (B, K)."""
        ...

    def gradient(self, points: Tensor, loss: Loss, rows: Tensor | None = None) -> Gradient:
        """One forward and one backward pass."""
        ...

    def jacobian(self, points: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One forward and K backward passes: logits (B, K) and gradients (B, K, C, H, W)."""
        ...


AttackKind = Literal["gradient", "boundary", "query"]
"""What an attack asks of the model's stand-in. ``gradient``: gradients, and now and then logits
alone. ``boundary``: both, and they must be of one precision, for the attack walks along the
decision boundary, which low precision moves; otherwise each kind of pass stops at its own.
``query``: logits, never a gradient."""


@dataclass
class Slots:
    """What an attack starts from. The first axis of every tensor is the slot."""

    inputs: Tensor
    """float32 (B, C, H, W) in [0, 1]"""
    labels: Tensor
    """int64 (B,)"""
    clean_logits: Tensor
    """float32 (B, K), of the output under attack"""
    keys: Tensor
    """int64 (B,), one for each (seed, sample, attack, search)"""
    search: Tensor
    """int64 (B,): which of the sample's searches, 0 … ``Attack.searches(K)`` − 1"""


@dataclass
class State:
    """What every attack keeps for each slot; attacks add their own tensors."""

    inputs: Tensor
    labels: Tensor
    targets: Tensor
    """int64 (B,): the class to aim at, or the label where there is none"""
    keys: Tensor
    step: Tensor
    """int64 (B,): steps taken"""
    candidate: Tensor
    """(B, C, H, W): the last point seen that lies in the ball"""
    margin: Tensor
    """(B,): its margin as the search saw it; +inf where there is nothing to propose"""
    found_size: Tensor | None = field(default=None, kw_only=True)
    """(B,), of minimum-norm attacks: the norm of the smallest adversarial perturbation"""
    border_margin: Tensor | None = field(default=None, kw_only=True)
    """(B,), of attacks that leave the ball: how near to being misclassified the search may have
    come at the ball's border"""


def fresh(slots: Slots, targets: Tensor | None = None) -> dict[str, Any]:
    """The fields of a :class:`State` before the first step, aiming at ``targets``, int64 (B,)."""
    return {
        "inputs": slots.inputs,
        "labels": slots.labels,
        "targets": slots.labels if targets is None else targets,
        "keys": slots.keys,
        "step": torch.zeros_like(slots.labels),
        "candidate": slots.inputs,
        "margin": slots.inputs.new_full((len(slots.labels),), torch.inf),
    }


StateT = TypeVar("StateT", bound=State)
RowsT = TypeVar("RowsT", bound="DataclassInstance")


class Attack(Protocol[StateT]):
    """A search for an input in the threat model's ball that the model gets wrong."""

    name: str
    threat_model: ThreatModel
    runs_to_the_end: bool
    """True for minimum-norm attacks, which go on after the first find to make it smaller."""
    kind: AttackKind
    state_type: type[StateT]
    """What ``start`` and ``step`` return; a search that was interrupted is put together from it."""

    def searches(self, num_classes: int) -> int:
        """How many searches a sample gets: targets × restarts."""
        ...

    def steps(self) -> int:
        """An upper bound on the steps of one search, for progress bars."""
        ...

    def start(self, query: Query, slots: Slots) -> StateT:
        """Place the searches at their first points."""
        ...

    def step(self, query: Query, state: StateT) -> StateT:
        """Advance every search by one step.

        Returns a new state; tensors of the one that was given stay as they are, for an interrupted
        step is made again.
        """
        ...

    def finished(self, state: StateT) -> Tensor:
        """bool (B,): searches that have used up their budget, or whose rest is known."""
        ...


@runtime_checkable
class BatchAttack(Protocol):
    """A foreign attack behind an adapter: it takes whole batches and has its own loop."""

    name: str
    threat_model: ThreatModel

    def propose(self, model: torch.nn.Module, inputs: Tensor, labels: Tensor, seed: int) -> Tensor:
        """(N, C, H, W) in [0, 1], labels (N,) → adversarial proposals of the same shape."""
        ...


def take(state: RowsT, rows: Tensor) -> RowsT:
    """The given rows of a state, or of any dataclass of tensors and such: int64 (B′,), bool (B,)."""
    if rows.dtype == torch.bool:
        rows = rows.nonzero().squeeze(1)
    kept = {
        name: part.index_select(0, rows) if isinstance(part, Tensor) else take(part, rows)
        for name, part in _parts(state).items()
    }
    return replace(state, **kept)


def join(states: Sequence[RowsT]) -> RowsT:
    """Put states one after the other along the slot axis."""
    if len(states) == 1:
        return states[0]
    joined = {}
    for name, part in _parts(states[0]).items():
        parts = [getattr(state, name) for state in states]
        joined[name] = torch.cat(parts) if isinstance(part, Tensor) else join(parts)
    return replace(states[0], **joined)


def _parts(state: Any) -> dict[str, Any]:
    values = {f.name: getattr(state, f.name) for f in fields(state)}
    return {n: v for n, v in values.items() if isinstance(v, Tensor) or is_dataclass(v)}


def nth_best_class(logits: Tensor, n: Tensor) -> Tensor:
    """The class with the ``n``-th largest logit, 0 the largest: (B, K), int64 (B,) → (B,)."""
    return logits.argsort(dim=1, descending=True).gather(1, n[:, None]).squeeze(1)


def evaluate(
    query: Query, points: Tensor, loss: Loss, needed: Tensor, rows: Tensor | None = None
) -> Gradient:
    """Losses at all points, gradients only where they will be used.

    Args:
        query: the engine's query.
        points: (B, C, H, W).
        loss: bound to the slots of the points.
        needed: bool (B,); elsewhere the gradient is zero and costs no backward pass.
        rows: the slots that the points belong to, int64 (B,); None: all.
    """
    if bool(needed.all()):
        return query.gradient(points, loss, rows)
    if not bool(needed.any()):
        logits = query.logits(points, rows)
        return Gradient(logits, loss(logits)[0], torch.zeros_like(points))
    yes, no = needed.nonzero().squeeze(1), (~needed).nonzero().squeeze(1)
    seen = query.gradient(points[yes], loss.at(yes), yes if rows is None else rows[yes])
    rest = query.logits(points[no], no if rows is None else rows[no])
    logits = rest.new_empty(len(points), rest.shape[1]).index_copy_(0, yes, seen.logits)
    logits.index_copy_(0, no, rest)
    gradient = torch.zeros_like(points).index_copy_(0, yes, seen.gradient)
    return Gradient(logits, loss(logits)[0], gradient)


def slot_keys(sample_keys: Tensor, attack: str, search: Tensor) -> Tensor:
    """Keys of (sample, attack, search): int64 (B,) each."""
    return seeding.derive(sample_keys, seeding.tag(attack), search)
