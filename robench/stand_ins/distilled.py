"""A student taught by the model's outputs in the ball, for models without useful gradients.

A small network learns the model's outputs at points around the evaluation's samples, and is searched
in its place (Papernot et al., "Practical black-box attacks against machine learning", AsiaCCS 2017).
In all rounds but the first the points are those that the student's own gradients lead to, which is
where a search will ask it. Nothing but outputs is asked of the model, so it matters not what hides
its gradients.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.attacks.base import nth_best_rival
from robench.attacks.losses import LOSSES, Loss
from robench.devices import Parts
from robench.errors import AttackError
from robench.geometry import project, random_point, steepest
from robench.models.wrapper import RobenchModel
from robench.stand_ins.base import Setting, StandIn

_FORWARDS = 2**15
"""Of the model, at most, unless that were fewer than :data:`_FEWEST` for each sample"""
_FEWEST, _MOST = 8, 64
"""Points around each sample"""
_ROUNDS = 4
"""An equal share of the points in each"""
_ASKED = 128
"""Points at a time, whatever the evaluation's batch: some models' last digits depend on it"""
_STEPS, _BATCH, _RATE = 300, 128, 4e-3
"""Of training in each round: steps of Adam, points in each, and the largest rate"""
_ASCENT = 6
"""Steps that lead to a point by the student's gradients"""
_LEAD = 4.0
"""What the median lead of the likeliest class is brought to, so that outputs of any scale teach"""
_RAREST = 1e-6
"""The smallest probability that is told from 0"""
_WIDTH, _CELLS = 16, 4
"""Channels of the student, and the cells that its maps are brought to in each direction"""


class Distilled(StandIn):
    """Teaches a student, and has it searched."""

    exact = False

    def build(self, setting: Setting) -> SearchModel:
        """The student; its description says how many outputs it saw and how many it foretold.

        Raises:
            AttackError: the model has no finite outputs at most of the points.
        """
        count = len(setting.inputs)
        key = seeding.sample_keys(setting.seed, ["distilled"])
        student = Student(setting.inputs.shape[1:], setting.model.num_classes, key)
        student = student.to(setting.inputs.device)
        share = min(max(_FORWARDS // count, _FEWEST), _MOST) // _ROUNDS
        points, outputs = setting.inputs, _outputs(setting.model, setting.inputs)
        foretold = math.nan
        for number in range(_ROUNDS):
            draws = range(number * share, (number + 1) * share)
            fresh = torch.cat([_drawn(student, setting, draw, guided=number > 0) for draw in draws])
            seen = _outputs(setting.model, fresh)
            foretold = _agreement(student, fresh, seen)
            points, outputs = torch.cat((points, fresh)), torch.cat((outputs, seen))
            known = outputs.isfinite().all(dim=1)
            if 2 * int(known.sum()) < len(known):
                raise AttackError(
                    f"the model has no finite outputs at {int((~known).sum())} of {len(known)} "
                    "points of the ball, which a student could learn from"
                )
            _teach(student, points[known], _targets(outputs[known]), seeding.derive(key, number))
        said = f"student of {len(outputs)} outputs, foretold {foretold:.0%} of the last {share * count}"
        return SearchModel(student.requires_grad_(False), said)


class Student(nn.Module):
    """A linear layer beside three convolutions: inputs (N, C, H, W) in [0, 1] → logits (N, K).

    Its first weights follow from ``key`` alone, int64 (1,).
    """

    def __init__(self, shape: torch.Size, num_classes: int, key: Tensor) -> None:
        super().__init__()
        channels, *sides = shape
        halved = min(max(math.ceil(math.log2(max(sides) / _CELLS)), 0), 3)
        strides = [2] * halved + [1] * (3 - halved)
        cells = [min(math.ceil(side / 2**halved), _CELLS) for side in sides]
        self.straight = nn.Linear(math.prod(shape), num_classes)
        self.curved = nn.Sequential(
            nn.Conv2d(channels, _WIDTH, 3, strides[0], 1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, strides[1], 1),
            nn.SiLU(),
            nn.Conv2d(_WIDTH, _WIDTH, 3, strides[2], 1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((cells[0], cells[1])),
            nn.Flatten(),
            nn.Linear(_WIDTH * math.prod(cells), num_classes),
        )
        for place, (name, values) in enumerate(self.named_parameters()):
            drawn = seeding.normal(seeding.derive(key, place), values.shape)[0]
            scale = 0.0 if name.endswith("bias") else values[0].numel() ** -0.5
            values.data.copy_(scale * drawn)

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum of both paths."""
        centred = 2 * inputs - 1
        logits: Tensor = self.straight(centred.flatten(1)) + self.curved(centred)
        return logits


def _drawn(student: Student, setting: Setting, draw: int, guided: bool) -> Tensor:
    """A point (N, C, H, W) of the ball around each sample: at random, or where the student leads."""
    inputs, labels, threat = setting.inputs, setting.labels, setting.threat_model
    keys = seeding.sample_keys(setting.seed, [str(row) for row in range(len(inputs))])
    keys = seeding.derive(keys.to(inputs.device), seeding.tag("distilled"), draw)
    points = random_point(inputs, threat.norm, threat.radius, keys)
    if not guided:
        if draw % 2:  # at the border, where searches end
            away = steepest(points - inputs, threat.norm)
            points = project(inputs + threat.radius * away, inputs, threat.norm, threat.radius)
        return points
    searched = SearchModel(student)
    classes = setting.model.num_classes
    # Towards one of the wrong classes; all of them have their turn.
    rival = torch.full_like(labels, draw % (classes - 1))
    targets = nth_best_rival(searched.logits(inputs), labels, rival)
    loss = Loss(LOSSES["logit-difference"], labels, targets)
    for step in range(_ASCENT):
        slope = searched.gradient(points, loss).gradient
        length = threat.radius * (1 - step / _ASCENT)
        ahead = points + length * steepest(slope, threat.norm)
        points = project(ahead, inputs, threat.norm, threat.radius)
    return points


@torch.no_grad()
def _outputs(model: RobenchModel, points: Tensor) -> Tensor:
    """float32 (M, K) for points (M, C, H, W); NaN where the model fails."""

    def alone(position: int, error: Exception) -> Tensor:
        return points.new_full((1, model.num_classes), torch.nan)

    parts = Parts[Tensor](_ASKED)
    return torch.cat(
        parts.map(len(points), lambda part: model(points[part].clone()).float(), alone)
    )


def _targets(outputs: Tensor) -> Tensor:
    """What is taught: probabilities (M, K) from finite outputs, whether these are logits of any
    scale, probabilities, or votes for one class."""
    values = outputs.double()
    if bool((values >= 0).all()) and bool(((values.sum(dim=1) - 1).abs() < 1e-3).all()):
        values = values.clamp_min(_RAREST).log()
    top = values.topk(2, dim=1).values
    lead = float((top[:, 0] - top[:, 1]).median())
    scale = _LEAD / lead if lead > 0 else 1.0
    return (scale * (values - top[:, :1])).softmax(dim=1).float()


def _teach(student: Student, points: Tensor, targets: Tensor, key: Tensor) -> None:
    """Minimise the divergence from ``targets`` (M, K) at points (M, C, H, W).

    By Adam (Kingma & Ba, ICLR 2015); torch's own imports its compiler, which takes longer.
    """
    weights = list(student.parameters())
    first, second = ([torch.zeros_like(values) for values in weights] for _ in range(2))
    for step in range(_STEPS):
        rows = seeding.integers(seeding.derive(key, step), len(points), (_BATCH,))[0]
        rows = rows.to(points.device)
        with torch.enable_grad():
            answered = student(points[rows]).log_softmax(dim=1)
            loss = F.kl_div(answered, targets[rows], reduction="batchmean")
            gradients = torch.autograd.grad(loss, weights)
        rate = 0.5 * _RATE * (1 + math.cos(math.pi * step / _STEPS))
        for values, gradient, mean, square in zip(weights, gradients, first, second, strict=True):
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient.square(), 0.001)
            width = (square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            values.data.sub_(rate / (1 - 0.9 ** (step + 1)) * mean / width)


def _agreement(student: Student, points: Tensor, outputs: Tensor) -> float:
    """The share of points at which the student, before it learns of them, predicts as the model."""
    logits = SearchModel(student).logits(points)
    return float((logits.argmax(dim=1) == outputs.argmax(dim=1)).float().mean())
