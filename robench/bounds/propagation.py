"""Lower bounds on robustness: margins that no perturbation inside the ball can push below.

Interval bound propagation (IBP; Gowal et al., ICCV 2019, arXiv 1810.12715) carries a box through
the network; CROWN (Zhang et al., NeurIPS 2018, arXiv 1811.00866) carries linear bounds of the
margins back to the input, and, where it is not told to take IBP's boxes (CROWN-IBP; Zhang et al.,
ICLR 2020, arXiv 1906.06316), of every feature before a ReLU. They hold for the network in real arithmetic:
computed in float64, :data:`SLACK` allows for what the float32 network rounds away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.func import vjp, vmap

from robench import geometry
from robench.bounds.affine_graph import AffineGraph, Operation
from robench.records import BoundsMethod
from robench.threat_models import ThreatModel

METHODS: tuple[BoundsMethod, ...] = get_args(BoundsMethod)

SLACK = 1e-5
"""A margin must exceed this share of the largest logit to count as verified: some eighty units in
the last place of float32, for what the judged network's own rounding moves."""

_ROWS = 64
"""Bounds that are carried back side by side."""


@dataclass(frozen=True)
class Box:
    """Bounds on each coordinate of the value at one position: low, high (B, …)."""

    low: Tensor
    high: Tensor

    @property
    def centre(self) -> Tensor:
        """Its middle (B, …)."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Tensor:
        """Half its extent (B, …)."""
        return (self.high - self.low) / 2

    def within(self, other: Box) -> Box:
        """The part that both allow."""
        return Box(torch.maximum(self.low, other.low), torch.minimum(self.high, other.high))

    def minimum(self, coefficients: Tensor) -> Tensor:
        """The least value of linear functions (K, B, …) on the box: (K, B)."""
        least = torch.where(coefficients > 0, coefficients * self.low, coefficients * self.high)
        return least.flatten(2).sum(dim=2)


@dataclass(frozen=True)
class Region:
    """What the adversary may send: a ball around each of ``inputs`` (B, C, H, W), in [0, 1]."""

    inputs: Tensor
    threat: ThreatModel

    @property
    def box(self) -> Box:
        """The smallest box that holds it. Every ball lies in the Linf ball of its radius."""
        eps = self.threat.radius
        return Box((self.inputs - eps).clamp(0, 1), (self.inputs + eps).clamp(0, 1))

    def minimum(self, coefficients: Tensor) -> Tensor:
        """The least value of linear functions (K, B, C, H, W) on it, or a bound on it: (K, B)."""
        least = self.box.minimum(coefficients)
        if self.threat.norm == "Linf":
            return least
        # On the ball without the pixel box; what is larger is nearer to the truth.
        flat = coefficients.flatten(0, 1)
        steepest = geometry.norm_of(flat, geometry.DUAL[self.threat.norm])
        at_centre = (coefficients * self.inputs).flatten(2).sum(dim=2)
        on_ball = at_centre - self.threat.radius * steepest.view(at_centre.shape)
        return torch.maximum(least, on_ball)


def lowest_margins(
    graph: AffineGraph, inputs: Tensor, labels: Tensor, threat: ThreatModel, method: BoundsMethod
) -> Tensor:
    """Bounds that the label's margins over the other classes do not fall below in the ball.

    Differentiable in the network's parameters.

    Args:
        graph: of the network.
        inputs: (B, C, H, W) in [0, 1], of the graph's shape and dtype.
        labels: (B,) int64.
        threat: norm and radius.
        method: one of :data:`METHODS`. ``ibp`` takes two passes, ``crown-ibp`` one for each class
            more, ``crown`` two for each feature before a ReLU.

    Returns:
        (B, classes − 1): of z_label − z_j, the other classes j in their order.
    """
    region = Region(inputs, threat)
    boxes = interval_boxes(graph, region, tighten=method == "crown")
    rows = _margin_rows(labels, boxes[graph.output].low.shape[1]).to(inputs.dtype)
    lowest = _lowest(graph, boxes, region, graph.output, rows, through_relu=False)
    if method != "ibp":
        linear = _lowest(graph, boxes, region, graph.output, rows, through_relu=True)
        lowest = torch.maximum(lowest, linear)
    return lowest.T


def _margin_rows(labels: Tensor, classes: int) -> Tensor:
    """(B,) → (classes − 1, B, classes): the functions z_label − z_j of the other classes j."""
    unit = torch.eye(classes, device=labels.device)
    places = torch.arange(classes - 1, device=labels.device).unsqueeze(1)
    return unit[labels].unsqueeze(0) - unit[places + (places >= labels).long()]


def interval_boxes(graph: AffineGraph, region: Region, *, tighten: bool = False) -> list[Box]:
    """Bounds at each position by intervals; those before a ReLU by CROWN too with ``tighten``."""
    boxes = [region.box]
    before_relu = {step.parents[0] for step in graph.operations if step.is_relu}
    for place, step in enumerate(graph.operations, start=1):
        box = _interval(step, [boxes[parent] for parent in step.parents])
        boxes.append(box)
        if tighten and place in before_relu:
            boxes[place] = box.within(_linear_box(graph, boxes, region, place))
    return boxes


def _interval(step: Operation, parents: Sequence[Box]) -> Box:
    if step.magnitude is None:
        (box,) = parents
        return Box(box.low.relu(), box.high.relu())
    centre = step.apply(*(box.centre for box in parents))
    radius = step.magnitude(*(box.radius for box in parents))
    return Box(centre - radius, centre + radius)


def _linear_box(graph: AffineGraph, boxes: list[Box], region: Region, place: int) -> Box:
    """Bounds on each coordinate at ``place`` by linear bounds carried back to the input."""
    shape = boxes[place].low.shape
    low, high = [], []
    for rows in _unit_rows(shape, boxes[place].low.dtype):
        low.append(_lowest(graph, boxes, region, place, rows, through_relu=True))
        high.append(-_lowest(graph, boxes, region, place, -rows, through_relu=True))
    return Box(*(torch.cat(parts).T.reshape(shape) for parts in (low, high)))


def _unit_rows(shape: torch.Size, dtype: torch.dtype) -> Iterator[Tensor]:
    """Every coordinate of a (B, …) value as a linear function, some (K, B, …) at a time."""
    size = shape[1:].numel()
    for rows in torch.split(torch.arange(size), _ROWS):
        unit = torch.zeros(len(rows), size, dtype=dtype)
        unit[torch.arange(len(rows)), rows] = 1
        yield unit.view(len(rows), 1, *shape[1:]).expand(-1, *shape)


def _lowest(
    graph: AffineGraph,
    boxes: Sequence[Box],
    region: Region,
    place: int,
    rows: Tensor,
    *,
    through_relu: bool,
) -> Tensor:
    """Lower bounds (K, B) on linear functions ``rows`` (K, B, …) of the value at ``place``.

    They are carried back, operation by operation, to the input; or to the last ReLUs, whose boxes
    then say how low they can be.
    """
    carried: dict[int, Tensor] = {place: rows}
    bound = rows.new_zeros(rows.shape[:2])
    while carried:
        place = max(carried)
        rows = carried.pop(place)
        if place == 0:
            bound = bound + region.minimum(rows)
            continue
        step = graph.operations[place - 1]
        if step.is_relu and not through_relu:
            bound = bound + boxes[place].minimum(rows)
            continue
        if step.is_relu:
            rows, constant = _below_relu(boxes[step.parents[0]], rows)
            cotangents: Sequence[Tensor] = (rows,)
        else:
            origin = [torch.zeros_like(boxes[parent].low) for parent in step.parents]
            constant_value, pull_back = vjp(step.apply, *origin)[:2]
            cotangents = vmap(pull_back)(rows)
            constant = (rows * constant_value).flatten(2).sum(dim=2)
        bound = bound + constant
        for parent, cotangent in zip(step.parents, cotangents, strict=True):
            carried[parent] = carried[parent] + cotangent if parent in carried else cotangent
    return bound


def _below_relu(box: Box, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Linear functions of a ReLU's value, bounded below by linear functions of its input.

    Where the sign is open, the ReLU lies below its chord, and above 0 or its argument, whichever
    is nearer.
    """
    open_sign = (box.low < 0) & (box.high > 0)
    span = torch.where(open_sign, box.high - box.low, torch.ones_like(box.low))
    passes = (box.low >= 0).to(rows.dtype)
    chord = torch.where(open_sign, box.high / span, passes)
    intercept = torch.where(open_sign, -box.low * chord, torch.zeros_like(box.low))
    below = torch.where(open_sign, (box.high > -box.low).to(rows.dtype), passes)
    positive, negative = rows.clamp(min=0), rows.clamp(max=0)
    constant = (negative * intercept).flatten(2).sum(dim=2)
    return positive * below + negative * chord, constant
