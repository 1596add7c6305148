"""Reasons to doubt a number, found before and after the attacks, as data.

The first six are AutoAttack's own flags (fra31/auto-attack, ``checks.py`` and ``flags_doc.md``),
with its thresholds. What they can say is "no flag raised", never "passed".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from robench.records import AttackSpec, Flag

__all__ = [
    "flag_few_classes",
    "flag_gradients",
    "flag_square",
    "flags_of_model",
]

_REPEATS = 5
_RANDOM_ALPHA = 1e-4
_SOFTMAX_ALPHA = 1e-5
_SQUARE_POINTS = 0.2

_AUTOGRAD = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


@torch.no_grad()
def flags_of_model(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[Flag]:
    """What can be seen from a few forward passes of one batch.

    Args:
        model: inputs (N, C, H, W) in [0, 1] → logits (N, K).
        inputs: one batch.
        labels: int64 (N,).
    """
    outputs = [model(inputs).float() for _ in range(_REPEATS)]
    found = [_randomised(outputs, labels), _softmax(outputs[0]), _autograd_inside(model, inputs)]
    found.append(_batch_mates(model, inputs, outputs[0]))
    return [flag for flag in found if flag is not None]


def _randomised(outputs: Sequence[Tensor], labels: Tensor) -> Flag | None:
    units = [z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in outputs]
    pairs = [(a, b) for i, a in enumerate(units) for b in units[i + 1 :]]
    gap = max(float((a - b).norm(dim=1).max()) for a, b in pairs)
    correct = {int((z.argmax(dim=1) == labels).sum()) for z in outputs}
    if len(correct) == 1 and gap <= _RANDOM_ALPHA:
        return None
    return Flag(
        name="randomised",
        severity="severe",
        evidence=f"{_REPEATS} passes over one batch differ: {sorted(correct)} correct, "
        f"normalised logits up to {gap:.2g} apart; use the suite aa-rand",
    )


def _softmax(logits: Tensor) -> Flag | None:
    sums = (logits.sum(dim=1) - 1).abs().max()
    if (
        logits.max() < 1 + _SOFTMAX_ALPHA
        and logits.min() > -_SOFTMAX_ALPHA
        and sums < _SOFTMAX_ALPHA
    ):
        return Flag(
            name="softmax_outputs",
            severity="severe",
            evidence="outputs are in [0, 1] and sum to 1: probabilities, not logits",
        )
    return None


def _autograd_inside(model: nn.Module, inputs: Tensor) -> Flag | None:
    """Whether ``forward`` itself calls autograd: a defense that optimises at test time."""
    codes = {function.__code__: function.__name__ for function in _AUTOGRAD}
    called: set[str] = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes:
            called.add(codes[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        model(inputs[:1])
    finally:
        sys.setprofile(before)
    if not called:
        return None
    return Flag(
        name="dynamic",
        severity="warning",
        evidence=f"forward calls {', '.join(sorted(called))}: the defense adapts at test time",
    )


def _batch_mates(model: nn.Module, inputs: Tensor, logits: Tensor) -> Flag | None:
    """Whether an input's output depends on what else is in its batch."""
    few = inputs[: min(len(inputs), 8)]
    alone = torch.cat([model(one[None]).float() for one in few])
    scale = float(logits.abs().max()) + 1e-12
    gap = float((alone - logits[: len(few)]).abs().max()) / scale
    if gap <= 1e-3:
        return None
    return Flag(
        name="batch_dependent",
        severity="severe",
        evidence=f"logits change by {gap:.1%} of their range when the batch changes; "
        "is a layer in training mode?",
    )


def flag_gradients(zero: int, nonfinite: int, searches: int) -> list[Flag]:
    """Gradients that cannot guide a search.

    Args:
        zero: searches whose first gradient was zero everywhere.
        nonfinite: gradients with NaN or infinity.
        searches: all searches.
    """
    flags = []
    if zero:
        flags.append(
            Flag(
                name="zero_gradients",
                severity="warning",
                evidence=f"{zero} of {searches} searches started with a zero gradient",
                count=zero,
            )
        )
    if nonfinite:
        flags.append(
            Flag(
                name="nonfinite_gradients",
                severity="severe",
                evidence=f"{nonfinite} gradients held NaN or infinity",
                count=nonfinite,
            )
        )
    return flags


def flag_square(broken: int, n: int) -> Flag | None:
    """Square, which sees no gradients, should add next to nothing after the gradient attacks."""
    points = 100 * broken / n if n else 0.0
    if points <= _SQUARE_POINTS:
        return None
    return Flag(
        name="square_lowers_accuracy",
        severity="warning",
        evidence=f"Square lowered the accuracy by {points:.1f} points after the gradient attacks: "
        "gradients may be masked",
        count=broken,
    )


def flag_few_classes(spec: AttackSpec, num_classes: int) -> Flag | None:
    """Stages that aim at more classes than there are wrong ones."""
    short = [
        f"{stage.name} ({wanted} wanted)"
        for stage in spec.stages or (spec,)
        if (wanted := int(stage.params.get("targets", 0))) > num_classes - 1
    ]
    if not short:
        return None
    return Flag(
        name="few_classes",
        severity="note",
        evidence=f"{num_classes - 1} target classes for {', '.join(short)}",
    )
