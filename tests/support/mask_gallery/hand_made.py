"""The attack of the yardsticks: plain gradient steps on a model that stands behind the mask.

It shares nothing with robench's attacks, follows models that the gallery knows to be the right ones,
and asks the masked model itself for every verdict.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mask_gallery.ground import Ground, PlantedMask

_DRAWS = 32


def answers(mask: PlantedMask, ground: Ground, model: nn.Module, inputs: Tensor) -> Tensor:
    """The classes (N,) that a masked model gives inputs (N, C, H, W), as its yardstick has them."""
    how = mask.yardstick.judged
    with torch.no_grad():
        if how == "majority":
            said = torch.stack([model(inputs).argmax(dim=1) for _ in range(_DRAWS)])
            return said.mode(dim=0).values
        if how == "fresh":
            return predicted(mask.build(ground), inputs)
        if how == "alone":
            return torch.cat([predicted(model, row) for row in inputs.split(1)])
        if how == "patient":
            try:
                return predicted(model, inputs)
            except RuntimeError:
                return predicted(model, inputs)
        return predicted(model, inputs)


def predicted(model: nn.Module, inputs: Tensor) -> Tensor:
    """(N,) from one pass."""
    logits: Tensor = model(inputs)
    return logits.argmax(dim=1)


def withstands(
    mask: PlantedMask,
    ground: Ground,
    inputs: Tensor,
    labels: Tensor,
    *,
    steps: int = 40,
    targets: int = 4,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Which samples are classified correctly, and which of them the yardstick leaves.

    Args:
        mask: which mask; its model is made anew.
        ground: what it is made of; its ``eps`` is the radius.
        inputs: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        steps: of each search.
        targets: how many classes are aimed at, after cross-entropy and margin.
        seed: of starts and of models that draw at random.

    Returns:
        Two masks, bool (N,).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = mask.build(ground).eval()
        correct = answers(mask, ground, model, inputs) == labels
        left = correct.clone()
        for make in mask.yardstick.behind:
            behind = make(ground).eval()
            for aim in range(-2, targets):
                _search(mask, ground, (model, behind), (inputs, labels, left), aim, steps)
    return correct, left


def _search(
    mask: PlantedMask,
    ground: Ground,
    models: tuple[nn.Module, nn.Module],
    samples: tuple[Tensor, Tensor, Tensor],
    aim: int,
    steps: int,
) -> None:
    """One search for each sample that is ``left``; it crosses out those that it breaks."""
    (model, behind), (inputs, labels, left) = models, samples
    rows = left.nonzero().squeeze(1)
    if not len(rows):
        return
    penalty = None if mask.yardstick.penalty is None else mask.yardstick.penalty(ground)
    with torch.no_grad():
        order = behind(inputs[rows]).scatter(1, labels[rows, None], -torch.inf).argsort(1, True)
    goals = order[:, aim] if aim >= 0 else None
    clean = inputs[rows]
    points = _inside(clean + ground.eps * (2 * torch.rand_like(clean) - 1), clean, ground.eps)
    for step in range(steps):
        points.requires_grad_()
        logits = behind(points)
        loss = _loss(logits, labels[rows], goals, aim)
        if penalty is not None:
            loss = loss - penalty(points)
        (slope,) = torch.autograd.grad(loss.sum(), points)
        points = points.detach()
        wrong = (logits.argmax(dim=1) != labels[rows]).nonzero().squeeze(1)
        if len(wrong):
            candidates = points[wrong]
            if mask.yardstick.land is not None:
                candidates = mask.yardstick.land(clean[wrong], candidates, ground)
            broken = answers(mask, ground, model, candidates) != labels[rows[wrong]]
            left[rows[wrong[broken]]] = False
        kept = left[rows]
        if not kept.any():
            return
        rows, clean, points, slope = rows[kept], clean[kept], points[kept], slope[kept]
        goals = None if goals is None else goals[kept]
        size = ground.eps * (0.02 + 0.5 * (1 + math.cos(math.pi * step / steps)) * 0.5)
        points = _inside(points + size * slope.sign(), clean, ground.eps)


def _loss(logits: Tensor, labels: Tensor, goals: Tensor | None, aim: int) -> Tensor:
    """(N,), large where the search is near its aim: -2 cross-entropy, -1 margin, else a class."""
    if aim == -2:
        return nn.functional.cross_entropy(logits, labels, reduction="none")
    own = logits.gather(1, labels[:, None]).squeeze(1)
    if goals is None:
        return logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1) - own
    return logits.gather(1, goals[:, None]).squeeze(1) - own


def _inside(points: Tensor, clean: Tensor, eps: float) -> Tensor:
    """The nearest points of the ball and of [0, 1]."""
    return torch.min(torch.max(points, clean - eps), clean + eps).clamp(0, 1)
