"""Logits that a network computes inside, where what it returns says less.

A network may return labels, probabilities that are sure of themselves, the vote of its members, or a
constant where it takes an input for an attack; the logits that this was made of are inside all the
same. They are found as what the network's layers with weights put out: as many numbers as there are
classes, the label's the largest for most samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import margin
from robench.errors import AttackError
from robench.models.wrapper import RobenchModel
from robench.probes import forward_hooks, layer_names
from robench.stand_ins.base import Setting, StandIn

_RIGHT = 0.5
"""Share of the samples for which a head's largest number is the label's, at least."""
_MOST = 32
"""Heads"""
_BATCH = 128


@dataclass(frozen=True)
class Head:
    """What a layer puts out, at one of its calls in a pass."""

    module: str
    call: int

    def __str__(self) -> str:
        return self.module if self.call == 0 else f"{self.module} (call {self.call + 1})"


class Hidden(StandIn):
    """Has the sum of all heads searched, each over its median margin."""

    exact = False

    def build(self, setting: Setting) -> SearchModel:
        """What the heads say together.

        Raises:
            AttackError: the network has none.
        """
        model, inputs, labels = setting.model, setting.inputs, setting.labels
        heads = find_heads(model, inputs[:_BATCH], labels[:_BATCH])
        if not heads:
            raise AttackError("no layer of the network puts out logits of its own")
        joined = JoinedHeads(model, list(heads))
        joined.weigh(inputs, labels)
        return SearchModel(joined, f"fp32, logits inside: {', '.join(map(str, heads))}")


class JoinedHeads(nn.Module):
    """The sum of a network's heads, each over a width of its own."""

    widths: Tensor

    def __init__(self, model: RobenchModel, heads: list[Head]) -> None:
        super().__init__()
        self.model = model
        self.heads = heads
        self.register_buffer("widths", torch.ones(len(heads)), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] → (N, K)."""
        said = self._said(inputs)
        total = said[0] / self.widths[0]
        for logits, width in zip(said[1:], self.widths[1:], strict=True):
            total = total + logits / width
        return total

    def _said(self, inputs: Tensor) -> list[Tensor]:
        seen = dict(outputs_inside(self.model, inputs, {head.module for head in self.heads}))
        return [seen[head] for head in self.heads]

    @torch.no_grad()
    def weigh(self, inputs: Tensor, labels: Tensor) -> None:
        """Take the median margins of inputs (N, C, H, W) with labels (N,) for the widths."""
        margins = [
            torch.stack([margin(head.float(), classes).abs() for head in self._said(part)])
            for part, classes in zip(
                torch.split(inputs, _BATCH), torch.split(labels, _BATCH), strict=True
            )
        ]
        widths = torch.cat(margins, dim=1).median(dim=1).values
        self.widths = torch.where(widths > 0, widths, 1.0)


@torch.no_grad()
def find_heads(model: RobenchModel, inputs: Tensor, labels: Tensor) -> dict[Head, Tensor]:
    """The heads with what they say of inputs (N, C, H, W), (N, K) each; of equal ones the first.

    ``labels`` (N,) are those that the model gives the inputs, by and large.
    """
    found: dict[Head, Tensor] = {}
    with seeding.own_stream(0, inputs.device):
        for head, said in outputs_inside(model, inputs):
            right = float((said.argmax(dim=1) == labels).double().mean())
            right *= bool(said.isfinite().all())
            known = any(torch.equal(said, other) for other in found.values())
            if right >= _RIGHT and not known and len(found) < _MOST:
                found[head] = said
    return found


def outputs_inside(
    model: RobenchModel, inputs: Tensor, only: set[str] | None = None
) -> Iterator[tuple[Head, Tensor]]:
    """What layers with weights of their own put out in a pass, in order, if that is (N, K).

    Raises:
        ModelError: the network lets nobody look inside.
    """
    names = {
        module: name
        for name, module in layer_names(model).items()
        if (only is None or name in only) and any(True for _ in module.parameters(recurse=False))
    }
    shape, seen = (len(inputs), model.num_classes), list[tuple[str, Tensor]]()

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.shape == shape:
            seen.append((names[module], output))

    with forward_hooks(list(names), after=note):
        model(inputs)
    calls: dict[str, int] = {}
    for name, output in seen:
        calls[name] = calls.get(name, -1) + 1
        yield Head(name, calls[name]), output
