"""The ways to a :class:`~robench.models.wrapper.RobenchModel`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robench.errors import DeviceError, UnsafeCheckpointError, UsageError, first_line
from robench.models.architectures.build import (
    architecture_code,
    build_architecture,
    runs_foreign_code,
)
from robench.models.catalogue import SOURCES
from robench.models.checkpoints import PROGRAM, load_program, read_checkpoint, verify_sha256
from robench.models.drafting import draft_card
from robench.models.state_dicts import extract_state_dict, load_strictly, strip_prefix
from robench.models.weights_files import locate_weights
from robench.models.wrapper import RobenchModel
from robench.models.zoo import LocatedCard, find_card
from robench.records import (
    ArchitectureSpec,
    ModelCard,
    ModelSummary,
    canonical_hash,
)
from robench.threat_models import ThreatModel

__all__ = ["load_checkpoint", "load_model"]


def load_model(
    model: str | os.PathLike[str] | LocatedCard | ModelCard,
    *,
    dataset: str | None = None,
    threat_model: ThreatModel | str | None = None,
    device: str | torch.device = "cpu",
    trust_pickle: bool = False,
    trust_code: bool = False,
) -> RobenchModel:
    """Load a model by id, short name, path of a card, or card.

    Args:
        model: see :func:`robench.models.find_card`; or an address in another collection,
            ``hf:OWNER/NAME`` or ``robustbench:DATASET/THREAT/NAME``. A bare card's relative
            weights are looked for in the current folder.
        dataset: narrows a short name.
        threat_model: narrows a short name.
        device: where to put it.
        trust_pickle: execute the code that the weights file carries.
        trust_code: import the callable that a card outside the zoo folders names.

    Raises:
        UnknownNameError, UsageError, CardError: no such card, or a wrong one.
        HashMismatchError: the weights are not the card's; they were not parsed.
        UnsafeCheckpointError: loading would execute code that was not trusted.
        KeyMismatchError: the weights do not fit the architecture.
        CheckpointError: the weights are missing or damaged.
        DeviceError: there is no such device.
    """
    if isinstance(model, str):
        source, colon, address = model.partition(":")
        if colon and source in SOURCES:
            found = SOURCES[source](address)
            if isinstance(found, RobenchModel):
                return _to_device(found, device)
            model = found
    located = _locate(model, dataset, threat_model)
    card = located.card
    if runs_foreign_code(card.architecture) and not (located.in_zoo or trust_code):
        raise UnsafeCheckpointError(
            f"the card would import and call {card.architecture.name}",
            where=located.path,
            hint="Move the card into a zoo folder of yours, or say --trust-code",
        )
    weights = locate_weights(card.weights, located.folder)
    network = _network(card, weights, trust_pickle)
    wrapped = RobenchModel(
        network,
        num_classes=card.num_classes,
        summary=_summarise(card, network),
        input_spec=card.input,
        forward_spec=card.forward,
        attention=card.attention,
        preprocessing=card.preprocessing,
    )
    return _to_device(wrapped, device)


def _locate(
    model: str | os.PathLike[str] | LocatedCard | ModelCard,
    dataset: str | None,
    threat_model: ThreatModel | str | None,
) -> LocatedCard:
    if isinstance(model, LocatedCard):
        return model
    if isinstance(model, ModelCard):
        # A card made in Python is its maker's own.
        return LocatedCard(model, Path.cwd(), Path.cwd())
    path = Path(model)
    if path.is_file() and path.suffix != ".toml":
        raise UsageError(
            "is a weights file, not a card",
            where=path,
            hint="Name its architecture with --arch, or make a card with `robench zoo add`",
        )
    return find_card(model, dataset, threat_model)


def _network(card: ModelCard, weights: Path, trust_pickle: bool) -> nn.Module:
    if card.architecture.name == PROGRAM:
        verify_sha256(weights, card.weights.sha256)
        return load_program(weights, trust_pickle=trust_pickle)
    content = read_checkpoint(weights, sha256=card.weights.sha256, trust_pickle=trust_pickle)
    state = extract_state_dict(content, card.weights.key, where=weights)
    state = strip_prefix(state, card.weights.strip_prefix, where=weights)
    network = build_architecture(card.architecture, card.num_classes, card.input.channels)
    load_strictly(network, state, where=weights)
    return network


def _summarise(card: ModelCard, network: nn.Module) -> ModelSummary:
    return ModelSummary(
        id=card.id,
        name=card.display_name or card.name,
        dataset=card.dataset,
        defense=card.defense,
        architecture=card.architecture.name,
        parameters=sum(p.numel() for p in network.parameters()),
        threat_model=card.threat_model,
        weights_sha256=card.weights.sha256,
        fingerprint=_fingerprint(card),
    )


def _fingerprint(card: ModelCard) -> str:
    """The card's, and where its network is built by code that others may change, of that too."""
    if card.architecture.name == PROGRAM:  # the weights file is the code
        return card.fingerprint
    code = architecture_code(card.architecture)
    return card.fingerprint if code is None else canonical_hash([card.fingerprint, code])


def _to_device(model: RobenchModel, device: str | torch.device) -> RobenchModel:
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"cannot use the device {str(device)!r}: {first_line(error)}",
            hint="Use --device cpu or auto",
        ) from error


def load_checkpoint(
    path: str | os.PathLike[str],
    architecture: str | ArchitectureSpec,
    *,
    num_classes: int,
    device: str | torch.device = "cpu",
    trust_pickle: bool = False,
    **card_fields: Any,
) -> RobenchModel:
    """Load a weights file without a card: :func:`draft_card`, then :func:`load_model`.

    Args:
        path: the weights file.
        architecture: as in a card, or ``program``.
        num_classes: number of logits.
        device: where to put it.
        trust_pickle: execute the code that the file carries.
        card_fields: the further arguments of :func:`draft_card`.

    Raises:
        RobenchError: as :func:`draft_card` and :func:`load_model`.
    """
    card = draft_card(
        path, architecture, num_classes=num_classes, trust_pickle=trust_pickle, **card_fields
    )
    return load_model(card, device=device, trust_pickle=trust_pickle)
