"""A model that remembers or counts, asked every time as it was given.

A detector of attacks that remembers queries, or a network that changes after so many calls, is no
other network to whoever holds a copy of it: he searches on one copy, and shows an input to another
that was asked nothing yet. So all passes of such a model, a search's and a verdict's, begin with what
its modules kept when the evaluation began. What it keeps outside its modules is not seen.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.models.wrapper import RobenchModel
from robench.records import Flag

COUNTING = {"history_dependent", "raises"}
"""The doctor's names for models that depend on what they were asked before."""
_OF_TORCH = frozenset(vars(nn.Module()))
_CONSTANT = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class FirstState:
    """What modules keep beside their parameters: buffers, and attributes that are no modules."""

    attributes: dict[str, dict[str, Any]]
    """By the module's name and the attribute's"""
    buffers: dict[str, dict[str, Tensor | None]]

    @classmethod
    def of(cls, model: nn.Module) -> FirstState | None:
        """As they are now; None: something cannot be copied."""
        modules, memo = dict(model.named_modules()), _shared(model)
        try:
            attributes = {name: copy.deepcopy(_own(m), memo) for name, m in modules.items()}
        except Exception:  # Foreign objects may raise anything.
            return None
        return cls(
            attributes,
            {
                name: {key: None if b is None else b.clone() for key, b in m._buffers.items()}
                for name, m in modules.items()
            },
        )

    def restore(self, model: nn.Module) -> None:
        """Have the modules of ``model``, or of a copy of it, keep this again."""
        memo = _shared(model)
        for name, module in model.named_modules():
            if name not in self.attributes:
                continue
            kept, now = self.attributes[name], _own(module)
            for key in now.keys() - kept.keys():
                del module.__dict__[key]
            for key, value in kept.items():
                if not (isinstance(value, _CONSTANT) and now.get(key) is value):
                    module.__dict__[key] = copy.deepcopy(value, memo)
            for key, buffer in self.buffers[name].items():
                here = module._buffers.get(key)
                if buffer is not None and here is not None and not _equal(here, buffer):
                    module._buffers[key] = buffer.to(here).clone()


class AsGiven(RobenchModel):
    """A model whose passes leave nothing behind."""

    _first: FirstState

    @classmethod
    def of(cls, model: RobenchModel, first: FirstState) -> AsGiven:
        """The same network, sharing every parameter."""
        other: AsGiven = copy.copy(model)  # type: ignore[assignment]
        other.__class__ = cls
        other._first = first
        first.restore(other)
        return other

    def forward(self, inputs: Tensor) -> Tensor:
        """As the model that was given."""
        try:
            return super().forward(inputs)
        finally:
            self._first.restore(self)


def as_given_flag() -> Flag:
    """How a record says that its passes are of this kind."""
    return Flag(
        name="asked_as_given",
        severity="note",
        evidence="every pass begins with what the model's modules kept when the evaluation began",
    )


def _own(module: nn.Module) -> dict[str, Any]:
    """What is neither torch's nor the wrapper's, which no pass changes."""
    if isinstance(module, RobenchModel):
        return {}
    return {key: value for key, value in vars(module).items() if key not in _OF_TORCH}


def _shared(model: nn.Module) -> dict[int, Any]:
    """What copies of attributes share: parameters, and modules, which are named by themselves."""
    return {id(part): part for part in (*model.parameters(), *model.modules())}


def _equal(here: Tensor, kept: Tensor) -> bool:
    return here.shape == kept.shape and torch.equal(here, kept.to(here))
