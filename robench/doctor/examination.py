"""The examination: every check, in order, on one model and a few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from robench.doctor.accuracy import accuracy, labels_in_range
from robench.doctor.behaviour import batch_mates, changed_state, dynamic, modes, randomised
from robench.doctor.finding import Finding
from robench.doctor.gradients import gradients
from robench.doctor.half_precision import half_precision
from robench.doctor.outputs import constant_outputs, find_logits, finite_rows, kind_of_outputs
from robench.doctor.subject import Subject
from robench.models.wrapper import RobenchModel
from robench.probes import undisturbed
from robench.records import Flag

__all__ = ["CHECKS", "Check", "brief_flags", "examine"]


_BRIEF = 128


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        function: what it finds on a model and samples.
        samples: how many it is given; None: all.
        brief: how many it is given before a run.
    """

    function: Callable[[Subject], list[Finding]]
    samples: int | None
    brief: int


CHECKS: Final[dict[str, Check]] = {
    "modes": Check(modes, 1, 1),
    "state": Check(changed_state, 16, 8),
    "randomness": Check(randomised, 128, 8),
    "adaptation": Check(dynamic, 2, 2),
    "batch mates": Check(batch_mates, 64, 16),
    "outputs": Check(kind_of_outputs, None, _BRIEF),
    "constant outputs": Check(constant_outputs, None, _BRIEF),
    "accuracy": Check(accuracy, None, _BRIEF),
    "gradients": Check(gradients, 64, 8),
    "half precision": Check(half_precision, 8, 4),
}
"""Every check on logits, in the order of its findings."""


def examine(
    model: RobenchModel,
    inputs: Tensor,
    labels: Tensor,
    *,
    data_classes: int | None = None,
    brief: bool = False,
    logits: Tensor | None = None,
) -> list[Finding]:
    """Look for what would make an evaluation worthless, with evidence and a mend for each fault.

    The model is left as it was: training flags, buffers and torch's random state. Where the card
    points to no logits but the network returns some, the rest is examined on those.

    Args:
        model: inputs (N, C, H, W) in [0, 1] → logits (N, K).
        inputs: float32 (N, C, H, W) in [0, 1], on the model's device. 200 tell most; with ten, only
            what needs no statistics is seen.
        labels: int64 (N,).
        data_classes: how many classes the data set has; None: not known.
        brief: fewer samples, as before a run.
        logits: float32 (N, K), the model's, if it was asked before.

    Returns:
        What was found, in the order of :data:`CHECKS`; empty says "nothing found", never "sound".
    """
    if brief:
        inputs, labels = inputs[:_BRIEF], labels[:_BRIEF]
        logits = None if logits is None else logits[:_BRIEF]
    with _untouched(model, inputs.device):
        readable, found = find_logits(model, inputs[:2])
        if readable is None:
            return found
        inside, problems = labels_in_range(labels, model.num_classes)
        found += problems
        if data_classes not in (None, model.num_classes):
            found.append(_class_count(model.num_classes, data_classes))
        known = logits if readable is model else None
        subject = Subject(readable, inputs, labels, known).at(inside)
        try:
            finite, problems = finite_rows(subject) if bool(inside.any()) else (inside, [])
        except Exception as error:  # Foreign code may raise anything.
            return [*found, _stopped("logits", error)]
        found += problems
        if not bool(finite.any()):
            return [*found, *modes(Subject(readable, inputs[:1], labels[:1]))]
        if problems:
            subject = subject.at(finite)
        for name, check in CHECKS.items():
            n = check.brief if brief else check.samples
            part = subject if n is None or n >= len(subject.labels) else subject.first(n)
            try:
                found += check.function(part)
            except Exception as error:  # Foreign code may raise anything.
                found.append(_stopped(name, error))
    return found


def brief_flags(
    model: RobenchModel, inputs: Tensor, labels: Tensor, logits: Tensor | None = None
) -> list[Flag]:
    """What a short examination finds, as flags of a record; arguments as for :func:`examine`."""
    found = examine(model, inputs, labels, brief=True, logits=logits)
    return [finding.flag() for finding in found]


def _class_count(own: int, given: int | None) -> Finding:
    return Finding(
        name="num_classes",
        severity="severe",
        evidence=f"the model has {own} classes, the data set {given}",
        mend="Choose the data set that the model was trained for with --dataset, or correct the "
        "card's num_classes",
    )


def _stopped(name: str, error: Exception) -> Finding:
    reason = (str(error).splitlines() or [""])[0]
    return Finding(
        name="check_failed",
        severity="warning",
        evidence=f"the check of {name} ended with {type(error).__name__}: {reason}",
        mend="The model raised it on clean inputs or in their backward pass; attacks will meet it "
        "too",
    )


@contextmanager
def _untouched(model: RobenchModel, device: torch.device) -> Iterator[None]:
    """Keep buffers, training flags and random states as they are."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), undisturbed(model):
        yield
