"""Whether what a model says depends on what it was asked before, and on how often.

Detectors of attacks remember queries; a model may change after so many calls, or refuse some. All of
this makes every search meet another model than the one that is deployed. It is looked for on copies, so
that the model itself is asked nothing; what it keeps outside its modules copies share, and that is not
seen.
"""

import copy
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from robench import seeding
from robench.doctor.subject import Finding, Subject, listed
from robench.errors import first_line
from robench.models.wrapper import RobenchModel

_PASSES = 16
_ALPHA = 1e-3
"""Share of the largest logit by which the same question may be answered otherwise."""
_NUDGE = 0.05
"""How far a pixel moves between an input and one like it, in [0, 1]."""
_FAR_AHEAD = 10**6
"""Calls: a counter is set ahead by so many."""


@torch.no_grad()
def history(subject: Subject) -> Iterator[Finding]:
    """Answers that depend on earlier questions, and questions that some passes refuse."""
    try:
        model = copy.deepcopy(subject.model)
    except Exception:  # Foreign code may raise anything; what cannot be copied is not looked at.
        return
    reasons: list[str] = []
    with suppress(Exception):  # the same; what it raises is told below
        reasons += [*_remembers(subject), *_counts(subject)]
    apart, failures = _repeated(model, subject.inputs)
    if apart > _ALPHA:
        reasons.append(f"{_PASSES} passes over the same inputs drift apart by {apart:.1%}")
    if failures:
        yield Finding(
            name="raises",
            severity="severe",
            evidence=f"{len(failures)} of {_PASSES} passes over the same inputs raise: {failures[0]}",
            mend="Evaluate a model that answers every time: samples on which it fails are errored, "
            "and never robust",
            count=len(failures),
        )
    if reasons:
        yield Finding(
            name="history_dependent",
            severity="severe",
            evidence="; ".join(reasons),
            mend="Evaluate the model without what it remembers and counts: searches meet another "
            "one otherwise, and no record can be repeated",
        )


def _remembers(subject: Subject) -> Iterator[str]:
    """Whether an input is answered otherwise after one that is like it, of pictures never seen."""
    unseen = subject.inputs.flip(-1)
    places = torch.arange(len(unseen), device=unseen.device)
    signs = seeding.signs(places, tuple(unseen.shape[1:]))
    alike = (unseen + _NUDGE * signs).clamp(0, 1)
    knowing, unknowing = (copy.deepcopy(subject.model) for _ in range(2))
    _ask(knowing, unseen)
    gap = _gap(_ask(knowing, alike), _ask(unknowing, alike))
    if gap > _ALPHA:
        yield f"after an input like it, an input's logits are {gap:.1%} of their range apart"


def _counts(subject: Subject) -> Iterator[str]:
    """Whether numbers that modules count with every pass decide what they say in the end."""
    model = copy.deepcopy(subject.model)
    readings = [_numbers(model)]
    for _ in range(2):
        said = _ask(model, subject.inputs)
        readings.append(_numbers(model))
    before, then, now = readings
    steps = {key: now[key] - then[key] for key in now if key in then and key in before}
    counters = {k: s for k, s in steps.items() if s and s == then[k] - before[k]}
    for (module, name), step in counters.items():
        setattr(module, name, now[module, name] + _FAR_AHEAD * step)
    if not counters:
        return
    gap = _gap(_ask(model, subject.inputs), said)
    if gap > _ALPHA:
        names = listed(sorted(name for _, name in counters))
        yield f"{_FAR_AHEAD} calls later, by its counters ({names}), logits are {gap:.1%} apart"


def _numbers(model: RobenchModel) -> dict[tuple[nn.Module, str], float]:
    """The plain numbers that modules keep beside their tensors, by module and name."""
    return {
        (module, name): value
        for module in model.modules()
        for name, value in vars(module).items()
        if type(value) in (int, float)
    }


def _repeated(model: RobenchModel, inputs: Tensor) -> tuple[float, list[str]]:
    """How far apart passes over the same inputs are, and what some of them raised."""
    said, failures = [], []
    for _ in range(_PASSES):
        try:
            said.append(_ask(model, inputs[:2]))
        except Exception as error:  # Foreign code may raise anything.
            failures.append(f"{type(error).__name__}: {first_line(error)}")
    return max((_gap(z, said[0]) for z in said[1:]), default=0.0), failures


def _ask(model: RobenchModel, inputs: Tensor) -> Tensor:
    """Logits, float32 (N, K), from the same draws every time: randomness is another check's."""
    with seeding.own_stream(0, inputs.device):
        logits: Tensor = model(inputs.clone())
    return logits.float()


def _gap(logits: Tensor, others: Tensor) -> float:
    """The largest difference as a share of the largest logit."""
    return float((logits - others).abs().max() / (others.abs().max() + 1e-12))
