"""Backward pass differentiable approximation: a network whose unfaithful parts have other gradients.

Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security", ICML 2018. What is
unfaithful is found by itself: each segment of a pass (:mod:`robench.stand_ins.segments`) is moved as
the ball moves it, and what its gradient says of the movement is held against what the movement is.
Where they disagree, and something smooth tells more, gradients go through that; the forward pass
stays as it is, to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.errors import AttackError, first_line
from robench.geometry import project, random_point, unit
from robench.stand_ins.base import Setting, StandIn
from robench.stand_ins.guides import (
    SIDES,
    Convolution,
    Differences,
    Guide,
    Identity,
    Linear,
    explained,
)
from robench.stand_ins.segments import Frame, Passes, Place, Visit

_TOLD = (0.2, 5.0)
"""How much of a movement a faithful gradient tells, at least and at most: 1 is all of it. A ReLU
that moves far beyond its kink tells a half."""
_BETTER = 2.0
"""What takes the place of a gradient has to tell so many times as much as it"""
_SOMETHING = 0.005
"""And so much at least"""
_PREFERRED = 0.5
"""The identity is taken where it tells so much of what the best fit does"""
_LOOKED_AT = 2**18
"""Values of all inputs that segments are looked at with; 64 inputs at most, and 4 at least"""
_MOVES = 8
"""Movements of each input that guides are fitted to and scored on, half and half"""
_NAMED = 6


@dataclass(frozen=True)
class Unfaithful:
    """A segment whose gradient does not tell what the segment does."""

    place: Place | None
    """Where it ends; None: a whole module's gradients are switched off, and back on in every pass that
    is visited"""
    told: float
    """The share of its movement within the ball that its gradient tells; 0: it has none"""
    where: str
    """In words"""
    caller: str
    """The module whose own code it is"""


def find_unfaithful(setting: Setting) -> list[Unfaithful]:
    """The segments whose gradient tells less than a fifth of what they do within the ball, or more
    than five times as much, in the order of the pass.

    Torch's own modules are taken at their word.

    Raises:
        AttackError: the model lets nobody look into its passes.
    """
    return _Probe(setting).unfaithful()


class BPDA(StandIn):
    """Builds the network whose unfaithful parts have other gradients."""

    exact = True

    def build(self, setting: Setting) -> SearchModel:
        """Finds them, and what takes their gradients' place.

        Raises:
            AttackError: nothing is unfaithful, nothing smooth tells more than what is, or the model
                lets nobody look into its passes.
        """
        probe = _Probe(setting)
        found = probe.unfaithful()
        if not found:
            raise AttackError(
                "bpda has nothing to replace: within the ball every module's gradient tells what the "
                "module does"
            )
        plan, said = {}, []
        for part in found:
            if part.place is None:
                said.append(f"{part.where} lifted")
            elif (chosen := probe.fitted(part.place, part.told)) is not None:
                plan[part.place] = chosen
                said.append(f"{chosen[1].name} for {part.where}")
        if not said:
            names = _listed([part.where for part in found])
            raise AttackError(
                f"bpda found nothing smooth that tells more than the gradient of {names}"
            )
        return SearchModel(
            setting.model,
            f"fp32, with {_listed(said)}",
            setting=partial(_guided, Passes(setting.model, probe.lifts), plan),
        )


class _Instead(torch.autograd.Function):
    """A value, with the gradient of a guide."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, guide: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


@contextlib.contextmanager
def _guided(passes: Passes, plan: Mapping[Place, tuple[str, Guide]]) -> Iterator[None]:
    """Passes inside have the gradients of the plan: by place the source's name and the guide."""

    def visit(place: Place, value: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
        if place in plan and torch.is_grad_enabled():
            name, guide = plan[place]
            source = next((part.flowing for part in frame.sources if part.name == name), None)
            again = partial(passes.again, frame, place) if frame.starts_alone() else None
            if source is not None and (again is not None or not isinstance(guide, Differences)):
                smooth = guide(source, again).to(value.dtype)
                if smooth.shape == value.shape:
                    value = _Instead.apply(value.detach(), smooth)
        return value, value

    with passes.visited(visit):
        yield


class _Probe:
    """Looks at the segments of a model on some of its inputs."""

    def __init__(self, setting: Setting) -> None:
        self.model, self.threat_model, self.seed = setting.model, setting.threat_model, setting.seed
        count = min(64, max(4, _LOOKED_AT // setting.inputs[:1].numel()))
        self.inputs = setting.inputs[:count]
        names = [str(index) for index in range(len(self.inputs))]
        self.keys = seeding.sample_keys(self.seed, names).to(self.inputs.device)
        self.passes = Passes(self.model)
        self.lifts = False

    def pair(self, draw: int) -> tuple[Tensor, Tensor]:
        """Two points of each input's ball, a random one and one on its border."""
        keys, norm = seeding.derive(self.keys, draw), self.threat_model.norm
        radius = self.threat_model.radius
        height, width = self.inputs.shape[2:]
        # Fine patterns and coarse ones: deep layers average the fine ones away.
        side = (1, 2, 4)[draw % 3]
        shape = (self.inputs.shape[1], -(-height // side), -(-width // side))
        pattern = seeding.signs(seeding.derive(keys, 1), shape)
        pattern = pattern.repeat_interleave(side, 2).repeat_interleave(side, 3)
        pattern = pattern[:, :, :height, :width]
        length = radius * (pattern if norm == "Linf" else unit(pattern, norm))
        there = project(self.inputs + length, self.inputs, norm, radius)
        return random_point(self.inputs, norm, radius, seeding.derive(keys, 2)), there

    def run(self, points: Tensor, visit: Visit) -> None:
        """One pass, visited; a model with random outputs draws the same each time."""
        try:
            self.passes.lifts = self.lifts
            with seeding.own_stream(self.seed, points.device), self.passes.visited(visit):
                self.model(points)
        except Exception as error:  # The network may raise anything.
            said = f"{type(error).__name__}: {first_line(error)}"
            raise AttackError(f"bpda cannot look into the network: {said}") from error

    def values(self, points: Tensor) -> dict[Place, Tensor]:
        """What reaches each place, without gradients."""
        found: dict[Place, Tensor] = {}

        def note(place: Place, value: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
            found[place] = value.detach().clone()
            return value, value

        with torch.no_grad():
            self.run(points, note)
        return found

    def unfaithful(self) -> list[Unfaithful]:
        """What :func:`find_unfaithful` says."""
        found, hidden = self.look(), self.passes.without_grad
        # A backward pass of the network's own, written by hand, has no gradients either: it is judged
        # by what it says in the end.
        blind = {part.caller for part in found} & {caller for _, caller in hidden}
        if not blind:
            return found
        self.lifts = True
        switched = [f"no_grad around {name}" for name, caller in hidden if caller in blind]
        return [*(Unfaithful(None, 0.0, where, "") for where in switched), *self.look()]

    def look(self) -> list[Unfaithful]:
        """The unfaithful segments of one pass."""
        here, there = self.pair(0)
        moved = self.values(there)
        leaves = [here.clone().requires_grad_()]
        movements = [there - here]
        found: list[Unfaithful] = []

        def cut(place: Place, value: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
            change = torch.zeros_like(value)
            if place in moved and moved[place].shape == value.shape:
                change = moved[place] - value.detach()
            passed_on = any(value is source.flowing for source in frame.sources)
            seen = self.lifts or torch.is_grad_enabled()
            trusted = frame.is_trusted or (passed_on and value.requires_grad)
            if seen and not trusted and bool(change.any()):
                told = _told(value, change, leaves, movements)
                if not _TOLD[0] <= told <= _TOLD[1]:
                    found.append(Unfaithful(place, told, _in_words(place, frame), frame.name))
            leaf = value.detach().clone().requires_grad_()
            leaves.append(leaf)
            movements.append(change)
            return leaf.clone(), leaf

        with torch.enable_grad():
            self.run(leaves[0], cut)
        return found

    def fitted(self, place: Place, told: float) -> tuple[str, Guide] | None:
        """The name of the source and the guide that tell most of a segment's movement, if one tells
        more than the ``told`` of its own gradient."""
        draws = [self.movements(place, draw) for draw in range(_MOVES)]
        names = list(dict.fromkeys(name for draw in draws for name in draw))
        if not names or any(list(draw) != names for draw in draws):
            return None  # passes differ in what they call
        target, sources = names[0], names[1:]
        known = {name: [draw[name] for draw in draws] for name in names}
        fit = {name: torch.cat(columns[::2]) for name, columns in known.items()}
        held = {name: torch.cat(columns[1::2]) for name, columns in known.items()}
        if not bool(held[target].any()):
            return None
        scored: list[tuple[float, str, Guide]] = []
        for name in sources:
            for guide in _guides(fit[name], fit[target]):
                share = explained(guide(held[name], None), held[target])
                weight = 1.0 if isinstance(guide, Identity) else _PREFERRED
                scored.append((weight * share, name, guide))
        if len(sources) == 1:
            step = float(held[sources[0]].abs().max())
            share, differences = self.differences(place, step)
            if differences is not None:
                scored.append((_PREFERRED * share, sources[0], differences))
        best = max(scored, key=lambda item: item[0], default=None)
        if best is None or best[0] < max(_SOMETHING, _BETTER * min(max(told, 0.0), _TOLD[0])):
            return None
        return best[1], best[2]

    def movements(self, place: Place, draw: int) -> dict[str, Tensor]:
        """How a segment's ends move from one point of a pair to the other: first the target, under
        the name of nothing, then its sources by name."""
        seen: list[dict[str, Tensor]] = []

        def note(at: Place, value: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
            if at == place:
                sources = {source.name: source.value.detach().clone() for source in frame.sources}
                seen.append({"": value.detach().clone(), **sources})
            return value, value

        with torch.no_grad():
            for points in self.pair(draw):
                self.run(points, note)
        if len(seen) != 2:
            return {}
        here, there = seen
        same = [n for n in here if n in there and here[n].shape == there[n].shape]
        return {name: there[name] - here[name] for name in same}

    def differences(self, place: Place, step: float) -> tuple[float, Differences | None]:
        """The segment's own differences, if it is of that kind, and how much of a movement they tell."""
        moved = self.movements(place, 1)
        found: list[tuple[float, Differences]] = []

        def note(at: Place, value: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
            if at == place and frame.starts_alone():
                again, source = partial(self.passes.again, frame, place), frame.sources[0]
                guide = Differences.of(step, source.value, again)
                if guide is not None:
                    slopes = guide.slopes(source.value, again)
                    predicted = guide.along(slopes, moved[source.name])
                    found.append((explained(predicted, moved[""]), guide))
            return value, value

        with torch.no_grad():
            self.run(self.pair(1)[0], note)
        return found[0] if found else (0.0, None)


def _told(value: Tensor, change: Tensor, leaves: list[Tensor], movements: list[Tensor]) -> float:
    """⟨change, J·movement⟩ / ‖change‖²: how much of a target's change the gradient tells.

    J is the derivative of ``value``, which moves by ``change``, for the ``leaves``, which move by
    ``movements``.
    """
    if not value.requires_grad:
        return 0.0
    try:
        pulled = torch.autograd.grad(value, leaves, change, retain_graph=True, allow_unused=True)
    except RuntimeError:  # a backward pass of the network's own that fails
        return 0.0
    told = sum(
        float((slope.nan_to_num(0.0, 0.0, 0.0).double() * movement.double()).sum())
        for slope, movement in zip(pulled, movements, strict=True)
        if slope is not None
    )
    return told / float(change.double().square().sum())


def _guides(source: Tensor, target: Tensor) -> list[Guide]:
    """Every guide that can be fitted to movements (n, …) and (n, …)."""
    fitted: list[Guide | None] = [
        Identity.fitted(source, target),
        *(Convolution.fitted(source, target, side) for side in SIDES),
        Linear.fitted(source, target),
    ]
    return [guide for guide in fitted if guide is not None]


def _in_words(place: Place, frame: Frame) -> str:
    if not place.is_output:
        return f"what enters {place.name}"
    kind = type(frame.module).__name__
    return f"what leaves {place.name} ({kind})" if frame.children else f"{place.name} ({kind})"


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
