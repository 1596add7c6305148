"""Whether the model is a function: the same output for the same input, and nothing else moved.

That outputs are random, that they are probabilities and that forward calls autograd are
AutoAttack's own flags (fra31/auto-attack, ``checks.py`` and ``flags_doc.md``), with its
thresholds; but what differs in the length of the logits alone is random here, too.
"""

import sys
from collections.abc import Iterator
from itertools import combinations
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from robench.doctor.subject import Finding, Subject, listed
from robench.errors import first_line

_REPEATS = 5
_RANDOM_ALPHA = 1e-4
_MATES_ALPHA = 1e-3
_DRAWN = 3.0
"""Times that the gap must exceed what two passes over the same batch are apart: random outputs are another
check's."""
_ALONE = 8

_MODAL = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
    nn.MultiheadAttention,
    nn.RReLU,
)
"""Layers of torch that compute something else in training."""

_AUTOGRAD = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


def modes(subject: Subject) -> Iterator[Finding]:
    """Layers that stay in training mode, and normalisations that never saw a sample."""
    network = subject.model.network
    training = [
        name or "the network"
        for name, module in network.named_modules()
        if module.training and _heeds_mode(module)
    ]
    if training:
        yield Finding(
            name="train_mode",
            severity="severe",
            evidence=f"{len(training)} modules stay in training mode after eval(): "
            f"{listed(training)}",
            mend="Let eval() reach them: train(mode) must call super().train(mode)",
            count=len(training),
        )
    fresh = [name for name, module in network.named_modules() if _never_tracked(module)]
    if fresh:
        yield Finding(
            name="untrained_batch_norm",
            severity="warning",
            evidence=f"{len(fresh)} batch normalisations have mean 0, variance 1 and no "
            f"batches counted: {listed(fresh)}",
            mend="Save the buffers with the weights (state_dict(), not parameters())",
            count=len(fresh),
        )


def _heeds_mode(module: nn.Module) -> bool:
    """Whether the mode can change what it computes; in exported graphs it cannot."""
    own_code = not type(module).__module__.startswith("torch.")
    return own_code or isinstance(module, _MODAL)


def _never_tracked(module: nn.Module) -> bool:
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        return False
    mean, var, seen = module.running_mean, module.running_var, module.num_batches_tracked
    if mean is None or var is None or seen is None:
        return False
    return int(seen) == 0 and not bool(mean.any()) and bool((var == 1).all())


@torch.no_grad()
def randomised(subject: Subject) -> Iterator[Finding]:
    """Whether passes over one batch differ."""
    outputs = [subject.call(subject.inputs) for _ in range(_REPEATS)]
    length = outputs[0].norm(dim=1) + 1e-10
    gap = max(float(((a - b).norm(dim=1) / length).max()) for a, b in combinations(outputs, 2))
    correct = {int((z.argmax(dim=1) == subject.labels).sum()) for z in outputs}
    if len(correct) == 1 and gap <= _RANDOM_ALPHA:
        return
    yield Finding(
        name="randomised",
        severity="severe",
        evidence=f"{_REPEATS} passes over one batch differ: {sorted(correct)} of "
        f"{len(subject.labels)} correct, logits up to {gap:.2g} of their length apart",
        mend="Switch dropout and noise off; if randomness is the defense, say by how many draws it is "
        "judged: --draws 100, or draws = 100 in its card",
    )


@torch.no_grad()
def dynamic(subject: Subject) -> Iterator[Finding]:
    """Whether ``forward`` itself calls autograd: a defense that optimises at test time."""
    codes = {function.__code__: function.__name__ for function in _AUTOGRAD}
    called: set[str] = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in codes:
            called.add(codes[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        subject.call(subject.inputs[:2])
    finally:
        sys.setprofile(before)
    if called:
        yield Finding(
            name="dynamic",
            severity="warning",
            evidence=f"forward calls {', '.join(sorted(called))}: the defense adapts at test time",
            mend="The suites assume a fixed network: take the number as an upper bound, and add "
            "an attack on the adaptation itself",
        )


@torch.no_grad()
def batch_mates(subject: Subject) -> Iterator[Finding]:
    """Whether an input's output depends on what else is in its batch."""
    few = subject.inputs[:_ALONE]
    together = subject.call(subject.inputs)[: len(few)]
    alone = []
    for one in few:
        try:
            alone.append(subject.call(one[None]))
        except Exception as error:  # Foreign code may raise anything.
            yield Finding(
                name="fails_on_single_inputs",
                severity="severe",
                evidence=f"a batch of {len(subject.inputs)} passes, one input alone does not: "
                f"{first_line(error)}",
                mend="Replace squeeze() by flatten(1), and export programs with a dynamic "
                "batch dimension: evaluation uses batches of several sizes",
            )
            return
    size = float(together.abs().max()) + 1e-12
    gap = float((torch.cat(alone) - together).abs().max()) / size
    if gap <= _MATES_ALPHA:
        return
    again = subject.call(subject.inputs)[: len(few)]
    if gap > _MATES_ALPHA + _DRAWN * float((again - together).abs().max()) / size:
        yield Finding(
            name="batch_dependent",
            severity="severe",
            evidence=f"logits change by {gap:.1%} of their range when the batch changes",
            mend="Use stored statistics in every normalisation (track_running_stats=True and "
            "eval()), and no mean over the batch in forward",
        )


@torch.no_grad()
def changed_state(subject: Subject) -> Iterator[Finding]:
    """What a forward pass leaves behind in buffers and parameters."""
    before = {name: tensor.clone() for name, tensor in subject.stored()}
    subject.call(subject.inputs)
    moved = [name for name, tensor in subject.stored() if not _same(before.get(name), tensor)]
    if moved:
        yield Finding(
            name="changing_state",
            severity="severe",
            evidence=f"a forward pass in evaluation mode changes {listed(moved)}",
            mend="Update buffers only where self.training is true",
            count=len(moved),
        )


def _same(before: Tensor | None, after: Tensor) -> bool:
    if before is None or before.shape != after.shape:
        return False
    # NaN equals itself here: a broken weight that stays broken has not moved.
    return bool(((before == after) | ((before != before) & (after != after))).all())
