"""A model's further outputs, joined with its final one, for decisions that are made inside.

Where a network decides inside what its final output shall say, as reverse attention does by an
argmax (:mod:`robench.models.architectures.reverse_attention`), the final logits have no slope towards
the other decision, and the further outputs that it follows have. An architecture may also offer
other ways through itself, in which a hard choice is a soft one or is made beforehand
(:attr:`robench.models.architectures.Classifier.alternatives`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import margin
from robench.errors import AttackError
from robench.models.wrapper import RobenchModel
from robench.stand_ins.base import Setting, StandIn

_BATCH = 128


class Auxiliary(StandIn):
    """Has all outputs searched at once: ``auxiliary``, or ``auxiliary:ALTERNATIVE``.

    Args:
        alternative: the architecture's name for another way through the network; None: its own.
    """

    exact = False

    def __init__(self, alternative: str | None = None) -> None:
        self.alternative = alternative

    def build(self, setting: Setting) -> SearchModel:
        """The sum of all outputs' logits, each over its median margin.

        Raises:
            AttackError: the model has neither further outputs nor such an alternative.
        """
        model = setting.model
        if self.alternative is not None:
            if self.alternative not in model.alternatives:
                has = ", ".join(model.alternatives) or "none"
                raise AttackError(
                    f"the network has no alternative {self.alternative!r} (it has: {has})"
                )
            model = model.with_alternative(self.alternative)
        elif not model.outputs:
            raise AttackError("the model has no further outputs to join with its final one")
        joined = Joined(model)
        joined.weigh(setting.inputs, setting.labels)
        names = ", ".join(("the final output", *model.outputs))
        way = "" if self.alternative is None else f" through the alternative {self.alternative}"
        return SearchModel(joined, f"fp32, {names}{way}", passes=joined.passes)


class Joined(nn.Module):
    """The sum of a model's final and further logits, each over a width of its own.

    Heads of different scale weigh alike: cross-entropy and margins of the sum are of all of them.
    """

    widths: Tensor

    def __init__(self, model: RobenchModel) -> None:
        super().__init__()
        self.model = model
        self.passes = 2 if model.outputs else 1
        self.register_buffer("widths", torch.ones(1 + len(model.outputs)), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] → (N, K)."""
        heads = self.heads(inputs)
        total = heads[0] / self.widths[0]
        for logits, width in zip(heads[1:], self.widths[1:], strict=True):
            total = total + logits / width
        return total

    def heads(self, inputs: Tensor) -> list[Tensor]:
        """The final logits, then those of every further output, (N, K) each."""
        further = self.model.further_logits(inputs) if self.model.outputs else {}
        return [self.model(inputs), *further.values()]

    @torch.no_grad()
    def weigh(self, inputs: Tensor, labels: Tensor) -> None:
        """Take the median margins of inputs (N, C, H, W) with labels (N,) for the widths."""
        margins = [
            torch.stack([margin(head.float(), classes).abs() for head in self.heads(part)])
            for part, classes in zip(
                torch.split(inputs, _BATCH), torch.split(labels, _BATCH), strict=True
            )
        ]
        widths = torch.cat(margins, dim=1).median(dim=1).values
        self.widths = torch.where(widths > 0, widths, 1.0)
