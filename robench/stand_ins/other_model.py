"""Another model, searched in this one's place: adversarial inputs transfer.

Networks trained on the same data share many adversarial inputs (Papernot, McDaniel & Goodfellow,
arXiv 1605.07277), and one that hides its gradients shares them with one that does not. Where the
transfer breaks more than the direct search does, the direct search was misled (Carlini et al., "On
evaluating adversarial robustness", arXiv 1902.06705).
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from robench.acceleration.search_models import SearchModel
from robench.errors import AttackError, UnknownNameError, UsageError, first_line
from robench.models.loading import load_model
from robench.models.wrapper import RobenchModel
from robench.models.zoo import find_card
from robench.stand_ins.base import Setting, StandIn

_TRIED = 2
"""Inputs that show whether it can be called"""


@dataclass
class _Other:
    """What is known of another model, as long as the one under attack lives."""

    fingerprint: str
    loaded: RobenchModel | None
    """Waits to be searched; what is searched is its searcher's."""


_KNOWN: WeakKeyDictionary[RobenchModel, dict[str, _Other]] = WeakKeyDictionary()
"""Model under attack → others by name: a model that was loaded for a record's key is not loaded again
to be searched."""


class OtherModel(StandIn):
    """Has a model of the zoo searched, ``model:NAME``.

    Args:
        name: as for :func:`robench.models.load_model`. A short name that fits several cards is the
            one for the data set of the model under attack.

    Raises:
        UnknownNameError: no such model; near misses are listed.
        CardError: a card that is missing or breaks the schema.
    """

    exact = False

    def __init__(self, name: str) -> None:
        self.name = name
        if ":" in name:  # an address in another collection
            return
        try:
            find_card(name)
        except UnknownNameError:
            raise
        except UsageError:
            return  # ambiguous, so far

    def build(self, setting: Setting) -> SearchModel:
        """The other model.

        Raises:
            AttackError: it takes inputs of another shape, or tells other classes apart.
            RobenchError: as :func:`robench.models.load_model`.
        """
        known = self._known(setting.model)
        other = (known.loaded or self._load(setting.model)).to(setting.inputs.device)
        known.loaded = None
        channels, *size = setting.inputs.shape[1:]
        wanted = other.input_spec
        if wanted.channels != channels:
            raise self._unfit(f"takes {wanted.channels} channels and the samples have {channels}")
        if wanted.size is not None and wanted.size != tuple(size):
            raise self._unfit(f"takes images of {wanted.size}, the samples are {tuple(size)}")
        if other.num_classes != setting.model.num_classes:
            raise self._unfit(
                f"tells {other.num_classes} classes apart and {setting.model.summary.id} "
                f"{setting.model.num_classes}"
            )
        try:
            with torch.no_grad():
                other(setting.inputs[:_TRIED].clone())
        except Exception as error:  # a foreign network may raise anything
            raise self._unfit(f"fails on these samples: {first_line(error)}") from error
        return SearchModel(other, f"fp32, {other.summary.id} in its place")

    def identity(self, model: RobenchModel) -> str | None:
        """The other model's fingerprint.

        Raises:
            RobenchError: as :func:`robench.models.load_model`.
        """
        return self._known(model).fingerprint

    def _known(self, model: RobenchModel) -> _Other:
        known = _KNOWN.setdefault(model, {})
        if self.name not in known:
            loaded = self._load(model)
            known[self.name] = _Other(loaded.summary.fingerprint, loaded)
        return known[self.name]

    def _load(self, model: RobenchModel) -> RobenchModel:
        if ":" in self.name:
            return load_model(self.name)
        try:
            return load_model(find_card(self.name))
        except UnknownNameError:
            raise
        except UsageError:  # several have this name
            return load_model(find_card(self.name, model.summary.dataset))

    def _unfit(self, reason: str) -> AttackError:
        return AttackError(f"{self.name} cannot stand in: it {reason}")
