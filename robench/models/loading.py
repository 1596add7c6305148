"""The ways to a :class:`~robench.models.wrapper.RobenchModel`."""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robench.errors import (
    CardError,
    CheckpointError,
    DeviceError,
    UnsafeCheckpointError,
    UsageError,
)
from robench.models.architectures.build import build_architecture, runs_foreign_code
from robench.models.checkpoints import read_checkpoint, resolve_weights, verify_sha256
from robench.models.inspection import CheckpointInspection, inspect_checkpoint, matching_prefix
from robench.models.programs import PROGRAM, load_program
from robench.models.state_dicts import extract_state_dict, load_strictly, strip_prefix
from robench.models.wrapper import RobenchModel, buffer_fingerprint
from robench.models.zoo import LocatedCard, find_card
from robench.records import (
    ArchitectureSpec,
    AttentionSpec,
    ForwardSpec,
    InputSpec,
    ModelCard,
    ModelSummary,
    WeightsSpec,
    canonical_hash,
)
from robench.threat_models import ThreatModel

__all__ = ["draft_card", "load_checkpoint", "load_model", "wrap_module"]

_DEFAULT_THREAT = "Linf-8/255"


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
        model: see :func:`robench.models.find_card`. A bare card's relative weights are looked
            for in the current folder.
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
    located = _locate(model, dataset, threat_model)
    card = located.card
    if runs_foreign_code(card.architecture) and not (located.in_zoo or trust_code):
        raise UnsafeCheckpointError(
            f"the card would import and call {card.architecture.name}",
            where=located.path,
            hint="Move the card into a zoo folder of yours, or say --trust-code",
        )
    weights = _weights_file(card.weights, located.folder)
    network = _network(card, weights, trust_pickle)
    wrapped = RobenchModel(
        network,
        num_classes=card.num_classes,
        summary=_summarise(card, network),
        input_spec=card.input,
        forward_spec=card.forward,
        attention=card.attention,
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


def _weights_file(weights: WeightsSpec, folder: Path) -> Path:
    if "://" in weights.path:
        # Imported here: no other path opens network connections.
        from robench.models.downloads import fetch_weights

        return fetch_weights(weights.path, weights.sha256)
    return resolve_weights(weights.path, folder)


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
        fingerprint=card.fingerprint,
    )


def _to_device(model: RobenchModel, device: str | torch.device) -> RobenchModel:
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["it cannot be used"])[0]
        raise DeviceError(
            f"cannot use the device {str(device)!r}: {reason}", hint="Use --device cpu or auto"
        ) from error


def draft_card(
    path: str | os.PathLike[str],
    architecture: str | ArchitectureSpec,
    *,
    num_classes: int,
    dataset: str = "custom",
    threat_model: ThreatModel | str = _DEFAULT_THREAT,
    name: str | None = None,
    defense: str = "unknown",
    input: InputSpec | None = None,
    forward: ForwardSpec | None = None,
    attention: AttentionSpec | None = None,
    key: str | None = None,
    prefix: str | None = None,
    trust_pickle: bool = False,
) -> ModelCard:
    """A card for a weights file that has none, with the state dict's place and prefix guessed.

    Args:
        path: the weights file.
        architecture: as in a card, or ``program`` for TorchScript and ``torch.export`` files.
        num_classes: number of logits.
        dataset: name of the data set that it classifies.
        threat_model: what it is evaluated under unless told otherwise.
        name: the card's name; None: the file's.
        defense: recipe's name.
        input: range and normalisation; None: [0, 1] as it is.
        forward: arguments and output path.
        attention: how to look at its attention.
        key: place of the state dict; None: guessed.
        prefix: prefix to strip; None: guessed, with the architecture's own names as the judge.
        trust_pickle: execute the code that the file carries.

    Raises:
        CardError: a field has a wrong value.
        CheckpointError: the file cannot be read or holds no state dict.
    """
    path = Path(path)
    spec = ArchitectureSpec(name=architecture) if isinstance(architecture, str) else architecture
    seen = inspect_checkpoint(path, trust_pickle=trust_pickle)
    if not (seen.is_program or spec.name == PROGRAM):
        key, prefix = _place(seen, spec, num_classes, (input or InputSpec()).channels, key, prefix)
    threat = ThreatModel.parse(threat_model) if isinstance(threat_model, str) else threat_model
    try:
        return ModelCard(
            name=name or _name_from(path.stem),
            dataset=dataset,
            num_classes=num_classes,
            threat_model=threat,
            defense=defense,
            architecture=ArchitectureSpec(name=PROGRAM) if seen.is_program else spec,
            weights=WeightsSpec(
                path=str(path.resolve()), sha256=seen.sha256, key=key, strip_prefix=prefix or ""
            ),
            input=input or InputSpec(),
            forward=forward or ForwardSpec(),
            attention=attention or AttentionSpec(),
        )
    except ValueError as error:
        raise CardError(" ".join(str(error).split()), where=path) from error


def _place(
    seen: CheckpointInspection,
    spec: ArchitectureSpec,
    num_classes: int,
    in_channels: int,
    key: str | None,
    prefix: str | None,
) -> tuple[str | None, str]:
    candidates = [c for c in seen.candidates if key in (None, c.key)]
    if not candidates:
        if key is None:
            return seen.best.key, ""  # raises, and says what the file holds instead
        raise CheckpointError(
            f"has no state dict at key {key!r}",
            where=seen.path,
            hint=f"It has one at: {', '.join(repr(c.key or '') for c in seen.candidates)}",
        )
    if prefix is not None:
        return candidates[0].key, prefix
    network = build_architecture(spec, num_classes, in_channels)
    for candidate in candidates:
        fitting = matching_prefix(network, candidate.tensors)
        if fitting is not None:
            return candidate.key, fitting
    # Nothing fits: the likeliest guess makes the most telling list of differences.
    return candidates[0].key, candidates[0].prefix


def _name_from(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", stem).strip("-._+")[:100] or "model"


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


def wrap_module(
    module: nn.Module,
    *,
    num_classes: int,
    input: InputSpec | Mapping[str, Any] | None = None,
    forward: ForwardSpec | Mapping[str, Any] | None = None,
    attention: AttentionSpec | Mapping[str, Any] | None = None,
    name: str = "model",
    dataset: str = "custom",
    threat_model: ThreatModel | str = _DEFAULT_THREAT,
    defense: str = "unknown",
    share: bool = False,
) -> RobenchModel:
    """Evaluate a module of one's own, without a card.

    The module is copied, so that evaluating between two epochs neither freezes the parameters
    of the network in training nor sees the next step's.

    Args:
        module: takes (N, C, H, W) float inputs; its device is kept.
        num_classes: number of logits.
        input: range and normalisation that it expects; None: [0, 1] as it is.
        forward: arguments and output path, if ``forward`` does not simply return logits.
        attention: how to look at its attention.
        name: the leaderboard's name for it.
        dataset: name of the data set that it classifies.
        threat_model: what it was trained for.
        defense: recipe's name.
        share: use the module itself, which is then frozen and put in evaluation mode.

    Raises:
        CardError: a specification has a wrong field.
        UsageError: the module cannot be copied.
    """
    try:
        input_spec = InputSpec.model_validate(input or {})
        forward_spec = ForwardSpec.model_validate(forward or {})
        attention_spec = AttentionSpec.model_validate(attention or {})
    except ValueError as error:
        raise CardError(" ".join(str(error).split()), where=name) from error
    threat = ThreatModel.parse(threat_model) if isinstance(threat_model, str) else threat_model
    if not share:
        try:
            module = copy.deepcopy(module)
        except (RuntimeError, TypeError) as error:
            raise UsageError(
                f"the module cannot be copied: {error}", where=name, hint="Pass share=True"
            ) from error
    weights = buffer_fingerprint(module)
    fingerprint = canonical_hash(
        {
            "weights": weights,
            "code": _code_fingerprint(module),
            "num_classes": num_classes,
            "input": input_spec.model_dump(mode="json"),
            "forward": forward_spec.model_dump(mode="json"),
            "attention": attention_spec.model_dump(mode="json"),
        }
    )
    summary = ModelSummary(
        id=f"{dataset}/{threat.slug}/{name}",
        name=name,
        dataset=dataset,
        defense=defense,
        architecture=type(module).__name__,
        parameters=sum(p.numel() for p in module.parameters()),
        threat_model=threat,
        weights_sha256=weights,
        fingerprint=fingerprint,
    )
    return RobenchModel(
        module,
        num_classes=num_classes,
        summary=summary,
        input_spec=input_spec,
        forward_spec=forward_spec,
        attention=attention_spec,
    )


def _code_fingerprint(module: nn.Module) -> str:
    """Hash of what the module computes with its parameters, as far as it can be seen.

    Stored results must not be reused after ``forward`` was edited or a plain setting changed, so
    the sources of all classes outside torch count, and every attribute that is plain data.
    """
    digest = hashlib.sha256()
    for name, part in module.named_modules():
        kind = type(part)
        digest.update(f"{name}:{kind.__module__}.{kind.__qualname__}:{part.extra_repr()}".encode())
        settings = {
            k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str, tuple))
        }
        settings.pop("training", None)
        digest.update(repr(sorted(settings.items(), key=lambda item: item[0])).encode())
    for kind in sorted({type(part) for part in module.modules()}, key=lambda k: k.__qualname__):
        if not kind.__module__.startswith("torch."):
            try:
                digest.update(inspect.getsource(kind).encode())
            except (OSError, TypeError):  # Defined in a console: its name has to do.
                continue
    return digest.hexdigest()
