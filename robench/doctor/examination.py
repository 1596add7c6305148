"""The examination: every check, in order, on one model and a few samples."""

import torch
from torch import Tensor

from robench.doctor.accuracy import labels_in_range
from robench.doctor.behaviour import modes
from robench.doctor.catalogue import BRIEF, CHECKS
from robench.doctor.outputs import find_logits, finite_rows
from robench.doctor.subject import Finding, Subject
from robench.errors import first_line
from robench.models.wrapper import RobenchModel
from robench.probes import undisturbed


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
        What was found, in the order of the catalogue's checks; empty says "nothing found", never "sound".
    """
    if brief:
        inputs, labels = inputs[:BRIEF], labels[:BRIEF]
        logits = None if logits is None else logits[:BRIEF]
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), undisturbed(model):
        readable, found = find_logits(model, inputs[:2])
        if readable is None:
            return found
        inside, problems = labels_in_range(labels, model.num_classes)
        found += problems
        if data_classes not in (None, model.num_classes):
            found.append(
                Finding(
                    name="num_classes",
                    severity="severe",
                    evidence=f"the model has {model.num_classes} classes, the data set "
                    f"{data_classes}",
                    mend="Choose the data set that the model was trained for with --dataset, or "
                    "correct the card's num_classes",
                )
            )
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
        for name in CHECKS:
            try:
                found += CHECKS[name](subject, brief=brief)
            except Exception as error:  # Foreign code may raise anything.
                found.append(_stopped(name, error))
    return found


def _stopped(name: str, error: Exception) -> Finding:
    return Finding(
        name="check_failed",
        severity="warning",
        evidence=f"the check of {name} ended with {type(error).__name__}: {first_line(error)}",
        mend="The model raised it on clean inputs or in their backward pass; attacks will meet it "
        "too",
    )
