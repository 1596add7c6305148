"""What an attack is: a state machine over slots, driven by a loop it knows nothing of.

A *slot* holds one search for one sample; a sample has as many searches as there are targets and
restarts. Every tensor of a state has the slot as its first axis, so that the loop can drop
finished slots and fill in new ones between any two steps. An attack asks for passes through a
:class:`Query`, moves its points, and *proposes* a candidate with the margin it saw; it never
decides anything.
"""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import torch
from torch import Tensor

from robench import seeding
from robench.attacks.goals import Goal
from robench.attacks.losses import Loss
from robench.errors import AttackError
from robench.threat_models import Norm, ThreatModel

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

    def steepness(self, points: Tensor, rivals: Tensor, labels: Tensor, norm: Norm) -> Tensor:
        """One forward and M backward passes: (B, M), norms of the slopes of rivals over labels.

        ``rivals`` int64 (B, M) and ``labels`` int64 (B,) are classes; the slope is that of the
        first one's logit minus the second one's.
        """
        ...


AttackKind = Literal["gradient", "boundary", "query"]
"""What an attack asks of the model's stand-in. ``gradient``: gradients, and now and then logits
alone. ``boundary``: both, and they must be of one precision, for the attack walks along the
decision boundary, which low precision moves; otherwise each kind of pass stops at its own.
``query``: logits, never a gradient."""


@dataclass(frozen=True)
class Others:
    """Samples of the evaluation that the model classifies correctly, the same for every search."""

    inputs: Tensor
    """float32 (M, C, H, W) in [0, 1]"""
    labels: Tensor
    """int64 (M,)"""


@dataclass
class Slots:
    """What an attack starts from. The first axis of every tensor is the slot, but of ``others``."""

    inputs: Tensor
    """float32 (B, C, H, W) in [0, 1]"""
    labels: Tensor
    """int64 (B,): the classes that the goal is about, labels to leave or targets to reach"""
    clean_logits: Tensor
    """float32 (B, K), of the output under attack"""
    keys: Tensor
    """int64 (B,), one for each (seed, sample, attack, search)"""
    search: Tensor
    """int64 (B,): which of the sample's searches, 0 … ``Attack.searches(K)`` − 1, or as
    :meth:`Attack.search_order` numbers them"""
    others: Others | None = None
    """For attacks that start from them; where there are none, None"""

    def targets(self, restarts: int) -> Tensor:
        """int64 (B,): the wrong classes, likeliest first, each in ``restarts`` searches."""
        return nth_best_rival(self.clean_logits, self.labels, self.search // restarts)

    def fresh(self, targets: Tensor | None = None) -> dict[str, Any]:
        """The fields of a :class:`State` before the first step, aiming at ``targets``, (B,)."""
        return {
            "inputs": self.inputs,
            "labels": self.labels,
            "targets": self.labels if targets is None else targets,
            "keys": self.keys,
            "step": torch.zeros_like(self.labels),
            "candidate": self.inputs,
            "margin": self.inputs.new_full((len(self.labels),), torch.inf),
        }


@dataclass
class State:
    """What every attack keeps for each slot; attacks add their own tensors."""

    inputs: Tensor
    labels: Tensor
    targets: Tensor
    """int64 (B,): the wrong class that an untargeted search tries, or the label where there is none"""
    keys: Tensor
    step: Tensor
    """int64 (B,): steps taken"""
    candidate: Tensor
    """(B, C, H, W): the last point seen that lies in the ball"""
    margin: Tensor
    """(B,): its margin as the search saw it; +inf where there is nothing to propose"""
    found_size: Tensor | None = field(default=None, kw_only=True)
    """(B,), of minimum-norm attacks: the norm of the smallest adversarial perturbation"""
    found_at: Tensor | None = field(default=None, kw_only=True)
    """(B, C, H, W), of minimum-norm attacks: the input with that perturbation"""
    border_margin: Tensor | None = field(default=None, kw_only=True)
    """(B,), of attacks that leave the ball: how near to being misclassified the search may have
    come at the ball's border"""


StateT = TypeVar("StateT", bound=State)
RowsT = TypeVar("RowsT", bound="DataclassInstance")


ValueT = TypeVar("ValueT")

_HOLDS = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


_LARGEST = 1e9
"""Of numbers among the parameters: beyond it float32 overflows and memory ends."""


def _is_number(value: Any, kind: type | tuple[type, ...]) -> bool:
    fits = isinstance(value, kind) and not isinstance(value, bool)
    return fits and bool(-_LARGEST <= value <= _LARGEST)  # NaN is not


_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: _is_number(value, int)),
    float: ("a finite number", lambda value: _is_number(value, (int, float))),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
    type(None): ("left out", lambda value: value is None),
}
"""Declared type → how people call it, and whether a value is of it."""


def _types(attack: type[Any]) -> dict[str, Any]:
    try:
        return get_type_hints(attack)
    except (NameError, TypeError):  # one from outside, whose annotations are its own affair
        return {}


def _misfit(value: Any, declared: Any) -> str | None:
    """What a parameter must be that ``value`` is not; None: it fits, or is of a type of its own."""
    kinds = get_args(declared) if get_origin(declared) in (Union, UnionType) else (declared,)
    if not set(kinds) <= _PLAIN.keys() or any(_PLAIN[kind][1](value) for kind in kinds):
        return None
    return " or ".join(_PLAIN[kind][0] for kind in kinds)


def limited(default: ValueT, **limits: float) -> ValueT:
    """A field of an :class:`Attack` that has to be ``at_least``, ``above`` or ``at_most``."""
    return field(default=default, metadata=limits)


@dataclass(eq=False)
class Attack(ABC, Generic[StateT]):
    """A search for an input in the threat model's ball at which its goal is reached.

    Losses and margins come from :attr:`goal`; an attack that takes all of them from there can be
    aimed at targets, and says so by ``can_target``, which is not inherited: what does not say so is
    not built for an adversary who has any.

    The fields are the parameters that a suite may give. They are of the declared type exactly, for
    ``"no"`` in place of ``false`` would be true; numbers are finite.

    Raises:
        AttackError: a parameter that makes no sense.
    """

    can_target: ClassVar[bool] = False
    runs_to_the_end: ClassVar[bool] = False
    """True for minimum-norm attacks, which go on after the first find to make it smaller."""
    starts_from_others: ClassVar[bool] = False
    """Whether it asks for :attr:`Slots.others`."""
    kind: ClassVar[AttackKind] = "gradient"
    state_type: ClassVar[type[Any]]
    """What ``start`` and ``step`` return; a search that was interrupted is put together from it."""
    threat_model: ThreatModel
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        types = _types(type(self))
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            wrong = _misfit(value, types.get(parameter.name))
            if wrong is not None:
                raise AttackError(
                    f"{self.name}: {parameter.name} must be {wrong}, got {value!r:.100}"
                )
            for limit, bound in parameter.metadata.items():
                if not _HOLDS[limit](value, bound):
                    wanted = f"{parameter.name} must be {limit.replace('_', ' ')} {bound:g}"
                    raise AttackError(f"{self.name}: {wanted}, got {value!r}")

    @property
    def norm(self) -> Norm:
        """The ball's."""
        return self.threat_model.norm

    @property
    def goal(self) -> Goal:
        """What its losses and margins follow from."""
        return Goal.of(self.threat_model)

    def searches(self, num_classes: int) -> int:
        """How many searches a sample gets: targets × restarts.

        Raises:
            AttackError: it is not defined for so few classes.
        """
        return 1

    @abstractmethod
    def most_steps(self) -> int:
        """An upper bound on the steps of one search, for progress bars."""

    def cost_changes(self, shape: Sequence[int]) -> list[int]:
        """Steps, from 0 on, at which the cost of a step may change, on inputs of ``shape`` (C, H, W)."""
        return [0]

    def search_order(
        self, query: Query, inputs: Tensor, labels: Tensor, clean_logits: Tensor
    ) -> Tensor | None:
        """The numbers of each sample's searches in the order that they are made, int64 (B, searches).

        Of clean inputs (B, C, H, W), labels (B,) and logits (B, K); asked once for each sample,
        before the first of its searches starts. None: 0, 1, … A search is the same whenever it is
        made: its number decides what it draws.
        """
        return None

    @abstractmethod
    def start(self, query: Query, slots: Slots) -> StateT:
        """Place the searches at their first points."""

    @abstractmethod
    def step(self, query: Query, state: StateT) -> StateT:
        """Advance every search by one step.

        Returns a new state; tensors of the one that was given stay as they are, for an interrupted
        step is made again.
        """

    def finished(self, state: StateT) -> Tensor:
        """bool (B,): searches that have used up their budget, or whose rest is known."""
        return state.step >= self.most_steps()


@runtime_checkable
class BatchAttack(Protocol):
    """A foreign attack behind an adapter: it takes whole batches and has its own loop.

    Where the threat model has targets, ``labels`` are these, and its class has to say ``can_target``.
    """

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


def nth_best_rival(logits: Tensor, labels: Tensor, n: Tensor) -> Tensor:
    """The class with the ``n``-th largest logit among those that are wrong, 0 the largest.

    Shapes (B, K), int64 (B,), int64 (B,) → (B,). Whether the label itself is on top, as it is for
    the output that samples were chosen by, or another class, as may be for a further output,
    makes no difference.
    """
    rivals = logits.scatter(1, labels[:, None], -torch.inf)
    return rivals.argsort(dim=1, descending=True).gather(1, n[:, None]).squeeze(1)


def evaluate(
    query: Query, points: Tensor, loss: Loss, needed: Tensor, rows: Tensor | None = None
) -> Gradient:
    """Losses at all points (B, C, H, W), gradients only where they will be used.

    Where ``needed``, bool (B,), is false the gradient is zero and costs no backward pass. ``rows`` is
    as for a :class:`Query`, the loss bound to its slots.
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
