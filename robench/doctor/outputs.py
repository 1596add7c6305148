"""What the network returns: where the logits are, and whether they are logits."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from robench.doctor.subject import Finding, Subject, listed, rewrapped
from robench.errors import ModelError, first_line
from robench.models.wrapper import RobenchModel
from robench.records import OutputPath

_SOFTMAX_ALPHA = 1e-5
"""AutoAttack's threshold (fra31/auto-attack, ``checks.py``)."""

_SIGMOID_SPREAD = 0.1
_SIGMOID_MANY = 100
"""Outputs of trained networks that are all in [0, 1], and not all small, are so by a function."""
_DEPTH = 3
_MARGIN_STEPS = 1000
"""So many of float32's steps should a margin have at least"""


@torch.no_grad()
def find_logits(model: RobenchModel, inputs: Tensor) -> tuple[RobenchModel | None, list[Finding]]:
    """The model if it returns logits, else one that does, with what had to be changed.

    Of inputs (N, C, H, W) in [0, 1] two are enough. The model is None if there is none that can
    be examined further.
    """
    try:
        model(inputs.clone())
    except ModelError as error:
        mismatch = error.what
    except Exception as error:  # Foreign code may raise anything.
        return None, [
            Finding(
                name="forward_fails",
                severity="severe",
                evidence=f"forward raises {type(error).__name__} for inputs "
                f"{tuple(inputs.shape)}: {first_line(error)}",
                mend="Check the data set, its size and channels, and [forward] arguments in the "
                "card",
            )
        ]
    else:
        return model, []
    returned = model.network(model.prepare(inputs.clone()), **model.forward_spec.arguments)
    tensors = dict(_tensors(returned, (), _DEPTH))
    shape = (len(inputs), model.num_classes)
    for path, tensor in tensors.items():
        if tensor.shape == shape and path != model.forward_spec.output:
            forward = model.forward_spec.model_copy(update={"output": path})
            return rewrapped(model, forward_spec=forward), [
                Finding(
                    name="output_path",
                    severity="severe",
                    evidence=mismatch,
                    mend=f"Write in the card: [forward] output = {json.dumps(path, ensure_ascii=False)}",
                )
            ]
    return None, [_no_logits(model, mismatch, tensors, len(inputs))]


def _no_logits(
    model: RobenchModel, mismatch: str, tensors: Mapping[OutputPath, Tensor], n: int
) -> Finding:
    widths = sorted({t.shape[1] for t in tensors.values() if t.ndim == 2 and len(t) == n})
    if widths:
        choice = " or ".join(map(str, widths))
        return Finding(
            name="num_classes",
            severity="severe",
            evidence=f"{mismatch}: {choice} outputs for {model.num_classes} classes",
            mend=f"Write in the card: num_classes = {choice}, or choose the data set that the "
            "network was trained for",
        )
    shapes = listed([str(tuple(tensor.shape)) for tensor in tensors.values()])
    return Finding(
        name="no_logits",
        severity="severe",
        evidence=f"{mismatch}; its tensors have the shapes: {shapes or 'none'}",
        mend="Evaluate a module that returns logits (N, classes); a package.module:callable as "
        "architecture can wrap it",
    )


def _tensors(value: Any, path: OutputPath, depth: int) -> Iterator[tuple[OutputPath, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif depth:
        for step, inner in _parts(value):
            yield from _tensors(inner, (*path, step), depth - 1)


def _parts(value: Any) -> Iterable[tuple[int | str, Any]]:
    if isinstance(value, Mapping):
        return [(step, inner) for step, inner in value.items() if isinstance(step, (int, str))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return ()


def finite_rows(subject: Subject) -> tuple[Tensor, list[Finding]]:
    """Which samples have finite logits, bool (N,), and a finding if some have not."""
    finite = subject.logits.isfinite().all(dim=1)
    bad = int((~finite).sum())
    if not bad:
        return finite, []
    sick = [name for name, tensor in subject.stored() if not bool(tensor.isfinite().all())]
    weights = f"; not finite among its weights: {listed(sick)}" if sick else ""
    return finite, [
        Finding(
            name="nonfinite_logits",
            severity="severe",
            evidence=f"{bad} of {len(finite)} clean inputs have NaN or infinite logits{weights}",
            mend="Use a checkpoint from before training diverged"
            if sick
            else "Check the input range in the card, and divisions, logarithms and square roots "
            "in forward",
            count=bad,
        )
    ]


def kind_of_outputs(subject: Subject) -> Iterator[Finding]:
    """Probabilities and log-probabilities where logits should be."""
    logits = subject.logits
    low, high = float(logits.min()), float(logits.max())
    sums = float((logits.sum(dim=1) - 1).abs().max())
    log_sums = float(logits.logsumexp(dim=1).abs().max())
    in_unit = low > -_SOFTMAX_ALPHA and high < 1 + _SOFTMAX_ALPHA
    if in_unit and sums < _SOFTMAX_ALPHA:
        yield Finding(
            name="softmax_outputs",
            severity="severe",
            evidence=f"outputs are in [{low:.3g}, {high:.3g}] and sum to 1 within {sums:.1g}: "
            "probabilities, not logits",
            mend="Take the softmax out of forward: attacks lose their gradients in it",
        )
    elif high < _SOFTMAX_ALPHA and log_sums < 10 * _SOFTMAX_ALPHA:
        yield Finding(
            name="log_softmax_outputs",
            severity="note",
            evidence=f"outputs are negative and their exponentials sum to 1 (logarithm within "
            f"{log_sums:.1g}): log-probabilities, not logits",
            mend="Losses on differences of logits are the same for both; take the log_softmax "
            "out of forward to compare logits with those of other models",
        )
    elif in_unit and high - low > _SIGMOID_SPREAD and logits.numel() >= _SIGMOID_MANY:
        yield Finding(
            name="sigmoid_outputs",
            severity="warning",
            evidence=f"all {logits.numel()} outputs are in [{low:.3g}, {high:.3g}] and do not "
            "sum to 1: sigmoids, not logits",
            mend="Take the sigmoid out of forward: attacks lose their gradients in it",
        )


def coarse_margins(subject: Subject) -> Iterator[Finding]:
    """Logits so far from zero that float32 tells only few margins apart."""
    logits = subject.logits
    largest = float(logits.abs().max())
    step = largest * torch.finfo(torch.float32).eps
    best = logits.topk(2, dim=1).values
    typical = float((best[:, 0] - best[:, 1]).median())
    if 0 < typical < _MARGIN_STEPS * step:
        yield Finding(
            name="coarse_margins",
            severity="warning",
            evidence=f"logits reach {largest:.3g}, where float32 has steps of about {step:.1g}, and "
            f"lead over each other by {typical:.2g} only: margins have lost their digits",
            mend="Subtract in forward what all logits of a sample share, such as their mean, before "
            "it is added",
        )


def constant_outputs(subject: Subject) -> Iterator[Finding]:
    """Outputs that are the same whatever the input."""
    logits, n = subject.logits, len(subject.inputs)
    if n < 2 or bool((subject.inputs == subject.inputs[:1]).all()):
        return
    spread = float((logits - logits[:1]).abs().max())
    if spread <= 1e-6 * float(logits.abs().max()):
        yield Finding(
            name="constant_outputs",
            severity="severe",
            evidence=f"the logits of {n} different inputs differ by at most {spread:.2g}",
            mend="Check that the weights were loaded and that the inputs' range in the card "
            "is the one of training",
        )
