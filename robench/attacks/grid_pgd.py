"""PGD among the images that a file can hold: every point lies on the grey levels of its input.

A model may answer inputs between the levels of its data otherwise than those on them, and all that
a search among real numbers sees is then the wrong one (detectors of "unnatural" inputs; Carlini &
Wagner, "Adversarial examples are not easily detected", AISec 2017, on attacks that know a
detector). The levels are read from each input: the fewest that it fits, 256 where it fits none.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from robench.attacks.base import Gradient, Query, Slots
from robench.attacks.pgd import PGD, PGDState
from robench.errors import AttackError

STEPS = (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255)
"""Steps from black to white that images are made with."""
_OFF = 1e-3
"""Share of a step that a pixel may lie beside its level."""
_ROUNDED = 1e-4
"""Share of a step by which float32 may miss the edge of the ball"""


def grid_steps(inputs: Tensor) -> Tensor:
    """The least of :data:`STEPS` that every pixel of an input fits: (B, C, H, W) → (B, 1, 1, 1)."""
    found = torch.full((len(inputs), 1, 1, 1), float(STEPS[-1]), device=inputs.device)
    for steps in reversed(STEPS):
        scaled = inputs * steps
        fits = (scaled - scaled.round()).abs().flatten(1).amax(dim=1) < _OFF
        found[fits] = steps
    return found


@dataclass(eq=False, kw_only=True)
class GridPGD(PGD):
    """PGD whose points are rounded to the grid of their input, inside the ball; L∞ only.

    A step moves a pixel by one level at least.

    Raises:
        AttackError: another norm, or a parameter that makes no sense.
        UnknownNameError: a loss that is none of PGD's.
    """

    can_target: ClassVar[bool] = True
    name: str = "grid-pgd"
    loss: str = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "Linf":
            raise AttackError(f"{self.name} is defined under Linf, not {self.norm}")

    def start(self, query: Query, slots: Slots) -> PGDState:
        """Place the searches on the grid; no pass is spent."""
        state = super().start(query, slots)
        point = self.kept(state.point, slots.inputs)
        return replace(state, point=point, candidate=point)

    def ascent(self, seen: Gradient, state: PGDState) -> tuple[Tensor, Tensor]:
        """PGD's, longer where its step is shorter than a level: that would be rounded away."""
        direction, memory = super().ascent(seen, state)
        return direction * (1 / (self.length * grid_steps(state.inputs))).clamp_min(1.0), memory

    def kept(self, points: Tensor, inputs: Tensor) -> Tensor:
        """The grid's points nearest to these in the ball and the box."""
        steps, eps = grid_steps(inputs), self.threat_model.radius
        lowest = ((inputs - eps) * steps - _ROUNDED).ceil().clamp_min(0.0)
        highest = torch.minimum(((inputs + eps) * steps + _ROUNDED).floor(), steps)
        inside: Tensor = torch.clamp((points * steps).round(), lowest, highest) / steps
        return inside
