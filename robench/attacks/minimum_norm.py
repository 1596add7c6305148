"""What minimum-norm attacks share: they look for the smallest perturbation, in a ball or out of it.

``found_at`` is the smallest find and ``found_size`` its norm, whether or not it is inside the ball; the
ball's radius only decides the verdict, never the search. When the search is over, the original
model judges that find too, and the record keeps its norm as ``minimum_size`` if it is one. A search that ends
without one inside proposes its result pulled back to the ball's surface, at one more forward pass:
an attack on a ball has a best point in it, and that is the one whose margin and attention can be
spoken of.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from robench.attacks.base import Attack, Query, Slots, State
from robench.errors import AttackError
from robench.geometry import expand, norm_of, project
from robench.threat_models import Norm


@dataclass
class MinimumNormState(State):
    """A state that remembers the smallest find."""

    best_margin: Tensor
    """(B,): margin of ``found_at``, +inf before the first find"""
    found_at: Tensor = field(kw_only=True)
    """(B, C, H, W): the smallest find, before the first the clean input"""
    found_size: Tensor = field(kw_only=True)
    """(B,): norm of the smallest adversarial perturbation, +inf before the first"""


MinimumNormT = TypeVar("MinimumNormT", bound=MinimumNormState)


@dataclass(eq=False, kw_only=True)
class MinimumNorm(Attack[MinimumNormT]):
    """An attack that makes its find smaller until its budget is used.

    Raises:
        AttackError: it is not defined for the threat model's norm, or a parameter makes no sense.
    """

    runs_to_the_end = True
    kind = "boundary"
    only: ClassVar[Norm | None] = None
    """The norm that it minimises, where there is one alone"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.only not in (None, self.norm):
            raise AttackError(
                f"{self.name} minimises the {self.only} norm and says nothing about {self.norm}",
                hint=f"Use it under an {self.only} threat model; fmn minimises the others too",
            )

    @staticmethod
    def nothing_found(slots: Slots) -> dict[str, Any]:
        """The fields of a :class:`MinimumNormState` before the first step."""
        infinite = slots.inputs.new_full((len(slots.labels),), torch.inf)
        found = {"found_at": slots.inputs, "best_margin": infinite, "found_size": infinite}
        return slots.fresh() | found

    def remember(
        self, state: MinimumNormT, point: Tensor, lead: Tensor, crossed: Tensor
    ) -> MinimumNormT:
        """After a look at ``point`` (B, C, H, W), where the goal has the lead (B,).

        Args:
            state: before it.
            point: in [0, 1].
            lead: minus the goal's margin.
            crossed: bool (B,), where the point counts as found.
        """
        size = norm_of(point - state.inputs, self.norm)
        smaller = crossed & (size < state.found_size)
        best = torch.where(expand(smaller, point), point, state.found_at)
        best_margin = torch.where(smaller, -lead, state.best_margin)
        found = torch.where(smaller, size, state.found_size)
        return replace(
            state,
            step=state.step + 1,
            found_at=best,
            best_margin=best_margin,
            found_size=found,
            # Inside the ball it is left as it is, up to the last bit.
            candidate=project(best, state.inputs, self.norm, self.threat_model.radius),
            margin=torch.where(found <= self.threat_model.radius, best_margin, torch.inf),
        )

    def conclude(self, query: Query, state: MinimumNormT, point: Tensor) -> MinimumNormT:
        """Searches that end without a find in the ball propose theirs, or ``point``, inside it."""
        outside = self.finished(state) & (state.found_size > self.threat_model.radius)
        if not bool(outside.any()):
            return state
        chosen = outside.nonzero().squeeze(1)
        inputs, found = state.inputs[chosen], state.found_size[chosen]
        ends = torch.where(expand(found.isfinite(), inputs), state.found_at[chosen], point[chosen])
        ends = project(ends, inputs, self.norm, self.threat_model.radius)
        seen = self.goal.margin(query.logits(ends, chosen), state.labels[chosen])
        size = torch.where(seen < 0, norm_of(ends - inputs, self.norm), torch.inf)
        best = torch.where(expand(size < found, ends), ends, state.found_at[chosen])
        return replace(
            state,
            candidate=state.candidate.index_copy(0, chosen, ends),
            margin=state.margin.index_copy(0, chosen, seen),
            found_at=state.found_at.index_copy(0, chosen, best),
            found_size=state.found_size.index_copy(0, chosen, torch.minimum(found, size)),
        )


def cosine(first: float, last: float, steps: int) -> Tensor:
    """From ``first`` to nearly ``last`` along half a cosine: float32 (steps,).

    By Python's cosine: torch rounds an element by its place in the tensor.
    """
    half = (first - last) / 2
    return torch.tensor([last + half * (1 + math.cos(math.pi * k / steps)) for k in range(steps)])
