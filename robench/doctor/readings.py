"""Whether the network was trained on inputs in another range, normalisation or channel order.

Two things tell: the clean accuracy, and the statistics that the first batch normalisation stored
in training, which no longer fit when its inputs are read in another way. The latter need no
labels, and see what a network that shrugs off a change of contrast does not show in its accuracy.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import torch
from torch import Tensor, nn

from robench.doctor.subject import Finding, Subject
from robench.formatting import number
from robench.probes import forward_hooks
from robench.records import InputSpec
from robench.statistics.paired import PairedCounts, mcnemar

READINGS: Final[dict[str, dict[str, Any]]] = {
    "[0, 1]": {},
    "[-1, 1]": {"low": -1.0, "high": 1.0},
    "[0, 255]": {"high": 255.0},
    "ImageNet's mean and std": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "CIFAR-10's mean and std": {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    "MNIST's mean and std": {"mean": (0.1307,), "std": (0.3081,)},
    "[0, 255] minus ImageNet's mean": {"high": 255.0, "mean": (123.675, 116.28, 103.53)},
}
"""What networks are trained on, as fields of :class:`robench.records.InputSpec`."""

_ALPHA = 1e-4
"""Level of the tests between readings: below one in a thousand after a dozen comparisons."""
WORTHWHILE = 0.05
"""A reading must classify so many more samples, as a share; a robust network may well prefer a
little more contrast than it was trained with."""
_SEVERE_GAIN = 0.2
_ENOUGH = 32
_FAR = 0.25
_NEAR = 1.0
_TIMES_NEARER = 10
"""Nats. Networks on the inputs they were trained for are below 0.03, under any of the other
readings (but for the order of channels) above 1."""

_Other = tuple[str, Subject, float | None]
"""A reading's name, the samples read so, and :func:`first_divergence`."""


def readings(channels: int) -> Iterator[tuple[str, InputSpec]]:
    """Every reading that is defined for so many channels, with its name."""
    for name, fields in READINGS.items():
        if len(fields.get("mean", ())) not in (0, 1, channels):
            continue
        yield name, InputSpec(channels=channels, **fields)
        if channels == 3:
            # Means and deviations belong to the channels as the network sees them.
            turned = {
                key: value[::-1] if isinstance(value, tuple) else value
                for key, value in fields.items()
            }
            yield f"{name}, BGR", InputSpec(channels=3, channel_order="BGR", **turned)


def better_reading(subject: Subject) -> list[Finding]:
    """A reading other than the card's that the network was more likely trained with."""
    prepared = subject.model.prepare(subject.inputs[:4])
    own = first_divergence(subject)
    others = []
    for name, spec in readings(subject.inputs.shape[1]):
        other = subject.reading(spec)
        if torch.allclose(other.model.prepare(subject.inputs[:4]), prepared, atol=1e-4):
            continue
        divergence = first_divergence(other)
        # What is farther from training than the card's own reading is not worth whole passes.
        if own is None or divergence is None or divergence <= max(own, _NEAR):
            others.append((name, other, divergence))
    return [*_by_accuracy(subject, others)] or [*_by_statistics(own, others)]


def _by_accuracy(subject: Subject, others: Sequence[_Other]) -> Iterator[Finding]:
    none = torch.zeros_like(subject.correct)
    # A reading can gain on misclassified samples alone: few as they are, they dismiss most.
    wrong = ~subject.correct
    if gain(wrong, none) is None:
        return
    better = [
        (name, other)
        for name, other, _ in others
        if gain(none.masked_scatter(wrong, other.at(wrong).correct), none) is not None
    ]
    if not better:
        return
    name, other = max(better, key=lambda entry: entry[1].clean_acc)
    more = gain(other.correct, subject.correct)
    if more is None or other.clean_acc <= most_frequent(subject.labels):
        return
    yield Finding(
        name="input_reading",
        severity="severe" if more >= _SEVERE_GAIN else "warning",
        evidence=f"{percent(other.correct)} % of {len(other.correct)} samples are classified "
        f"correctly when inputs are read as {name}, {percent(subject.correct)} % as the card "
        "says",
        mend=_input_mend(other.model.input_spec),
    )


def _by_statistics(own: float | None, others: Sequence[_Other]) -> Iterator[Finding]:
    near = [(value, name, other) for name, other, value in others if value is not None]
    if own is None or own < _FAR or not near:
        return
    best, name, other = min(near, key=lambda entry: entry[0])
    if best <= min(_NEAR, own / _TIMES_NEARER):
        yield Finding(
            name="input_reading",
            severity="warning",
            evidence="what reaches the first batch normalisation is "
            f"{own:.2g} nats from the statistics that it stored in training, and {best:.2g} when "
            f"inputs are read as {name}",
            mend=_input_mend(other.model.input_spec),
        )


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass where everything that was asked for is known."""


@torch.no_grad()
def first_divergence(subject: Subject) -> float | None:
    """How far inputs are from those of training, seen from the first batch normalisation.

    The median over its channels of the Kullback-Leibler divergence, in nats, of a normal
    distribution with the batch's mean and variance from one with the stored ones. None for a
    network without such a layer.
    """
    norms = [
        module
        for module in subject.model.network.modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]
    seen: list[tuple[nn.BatchNorm2d, Tensor]] = []

    def reached(module: nn.BatchNorm2d, args: Any, kwargs: Any) -> None:
        seen.append((module, args[0] if args else kwargs["input"]))
        raise _Reached

    # What stands before it is the cheap end of a network.
    with suppress(_Reached), forward_hooks(norms, before=reached):
        subject.call(subject.inputs[:_ENOUGH])
    if not seen:
        return None
    norm, values = seen[0]
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        return None
    found_var, found_mean = torch.var_mean(values.float(), dim=(0, 2, 3), correction=0)
    ratio = (found_var + norm.eps) / (var + norm.eps)
    shift = (found_mean - mean).square() / (var + norm.eps)
    return float((0.5 * (ratio + shift - 1 - ratio.log())).median())


def _input_mend(spec: InputSpec) -> str:
    given = spec.model_dump(mode="json", exclude_defaults=True, exclude={"channels"})
    if not given:
        return (
            "Take the range and the normalisation out of the card's [input], or leave --input "
            "out: the network does without, or normalises itself"
        )
    card = ", ".join(f"{name} = {json.dumps(value)}" for name, value in given.items())
    options = " ".join(f"--input {name}={_on_command_line(v)}" for name, v in given.items())
    return f"Write in the card, under [input]: {card}; without a card: {options}"


def _on_command_line(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def gain(candidate: Tensor, own: Tensor) -> float | None:
    """How many more are correct, as a share; None unless it is both large and no accident."""
    counts = PairedCounts(
        both=int((candidate & own).sum()),
        only_first=int((candidate & ~own).sum()),
        only_second=int((~candidate & own).sum()),
        neither=int((~candidate & ~own).sum()),
    )
    more = (counts.only_first - counts.only_second) / len(own)
    return more if more >= WORTHWHILE and mcnemar(counts, "greater") < _ALPHA else None


def percent(correct: Tensor) -> str:
    """The share that is true, in percent."""
    return number(100 * int(correct.sum()) / len(correct)) if len(correct) else "–"


def most_frequent(labels: Tensor) -> float:
    """The share of the most frequent label: what naming one class always would get right."""
    return float(labels.bincount().max()) / len(labels)
