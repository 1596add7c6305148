"""Copies of a model on further devices, one for each: searches side by side share nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robench.acceleration.search_models import SearchModel, SearchModels
from robench.errors import ModelError, first_line
from robench.evaluation.adjudicate import Adjudicator
from robench.models.wrapper import RobenchModel


@dataclass(frozen=True)
class Replica:
    """What searches on another device run on, and what judges there."""

    device: torch.device
    model: RobenchModel
    adjudicator: Adjudicator
    models: SearchModels
    built: dict[str, SearchModel] = field(default_factory=dict)
    """Stand-ins by what an attack calls them"""


def replicas(
    model: RobenchModel,
    adjudicator: Adjudicator,
    models: SearchModels,
    devices: Sequence[torch.device],
    inputs: Tensor,
) -> tuple[Replica, ...]:
    """One on each of the devices, which are of one kind with the model's own; ``inputs`` (N, C, H, W)
    try them out.

    Raises:
        ModelError: the model cannot be copied, or a copy gives other logits.
    """
    with torch.no_grad():
        logits = model(inputs).cpu()
    found = []
    for device in devices:
        try:
            copies = copy.deepcopy((model, adjudicator, models))
            made = Replica(device, *copies)
            for module in (made.model, made.adjudicator.model):
                module.to(device)
            for form in made.models.different():
                form.module.to(device)
            with torch.no_grad():
                theirs = made.model(inputs.to(device)).cpu()
        except Exception as error:  # whatever a model's own code may raise
            told = f"{type(error).__name__}: {first_line(error)}"
            raise _unlike(model, device, f"cannot be copied to it: {told}") from error
        if not torch.allclose(theirs, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
            raise _unlike(model, device, "gives other logits there")
        found.append(made)
    return tuple(found)


def _unlike(model: RobenchModel, device: torch.device, how: str) -> ModelError:
    return ModelError(
        f"a second search loop, on {device}, is not possible: the model {how}",
        where=model.summary.id,
        hint="Choose one device with --device",
    )
