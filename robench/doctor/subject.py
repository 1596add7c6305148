"""What a check is given, a model with samples, and what it finds: a fault, what shows it, the mend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from robench.devices import device_of
from robench.models.wrapper import RobenchModel
from robench.records import Flag, ForwardSpec, InputSpec

_BATCH = 64

Severity = Literal["note", "warning", "severe"]


@dataclass(frozen=True)
class Subject:
    """What every check looks at.

    Attributes:
        model: inputs (N, C, H, W) in [0, 1] → logits (N, K).
        inputs: float32 (N, C, H, W), on the model's device.
        labels: int64 (N,), each in [0, K), on the same device.
        known: float32 (N, K), the model's logits, if it was asked before.
    """

    model: RobenchModel
    inputs: Tensor
    labels: Tensor
    known: Tensor | None = None

    @cached_property
    def logits(self) -> Tensor:
        """float32 (N, K)."""
        return self.forward(self.inputs) if self.known is None else self.known

    @cached_property
    def predictions(self) -> Tensor:
        """int64 (N,)."""
        return self.logits.argmax(dim=1)

    @cached_property
    def correct(self) -> Tensor:
        """bool (N,)."""
        return self.predictions == self.labels

    @property
    def clean_acc(self) -> float:
        """Share of samples that are classified correctly, in [0, 1]; NaN without samples."""
        return float(self.correct.float().mean())

    def call(self, inputs: Tensor) -> Tensor:
        """float32 logits of ``inputs``."""
        logits: Tensor = self.model(inputs)
        return logits.float()

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """float32 logits (M, K) of inputs (M, C, H, W), a few at a time."""
        return torch.cat([self.call(part) for part in torch.split(inputs, _BATCH)])

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """The network's parameters and buffers, with their names."""
        network = self.model.network
        return chain(network.named_parameters(), network.named_buffers())

    def at(self, rows: Tensor | slice) -> Subject:
        """The same model with some of the samples; ``rows`` is a mask, indices or a slice."""
        known = None if self.known is None else self.known[rows]
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows], known=known)

    def reading(self, input_spec: InputSpec) -> Subject:
        """The same samples, read as another card would have the network read them."""
        return replace(self, model=rewrapped(self.model, input_spec=input_spec), known=None)


def rewrapped(
    model: RobenchModel,
    *,
    input_spec: InputSpec | None = None,
    forward_spec: ForwardSpec | None = None,
) -> RobenchModel:
    """The same network, sharing every parameter, under a card that says something else."""
    other = RobenchModel(
        model.network,
        num_classes=model.num_classes,
        summary=model.summary,
        input_spec=input_spec or model.input_spec,
        forward_spec=forward_spec or model.forward_spec,
        attention=model.attention,
    )
    # The mean and deviation were made on the CPU; the network may be elsewhere.
    return other.to(device_of(model))


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or odd.

    Attributes:
        name: what it is, as it reads among a record's flags.
        severity: ``severe`` makes the numbers meaningless, ``warning`` doubtful; a ``note`` only
            wants to be known.
        evidence: what was seen, with figures.
        mend: what to do about it, such as what to write in the card.
        count: samples concerned, where that makes sense.
    """

    name: str
    severity: Severity
    evidence: str
    mend: str
    count: int | None = None

    def flag(self) -> Flag:
        """The finding as a record keeps it."""
        return Flag(
            name=self.name,
            severity=self.severity,
            evidence=f"{self.evidence}. {self.mend}",
            count=self.count,
        )


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names for a sentence; beyond ``most`` of them, how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
