"""The ways to a :class:`~robench.models.wrapper.RobenchModel`."""

from __future__ import annotations

import copy
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robench.devices import resolve_device, single_precision
from robench.errors import CardError, UnsafeCheckpointError, UsageError
from robench.models.architectures.build import (
    build_architecture,
    foreign_builder,
)
from robench.models.catalogue import SOURCES
from robench.models.checkpoints import read_checkpoint, verify_sha256
from robench.models.code_identity import code_identity
from robench.models.drafting import draft_card, further_weights
from robench.models.given import check_models, copied
from robench.models.library_code import is_of_library
from robench.models.programs import load_program
from robench.models.state_dicts import extract_state_dict, fit_names, load_strictly
from robench.models.touched import Touched
from robench.models.weights_files import locate_weights
from robench.models.wrapper import RobenchModel, buffer_fingerprint, unwrapped
from robench.models.zoo import LocatedCard, find_card
from robench.models.zoo_folders import CARD_NAME
from robench.records import (
    PROGRAM,
    ArchitectureSpec,
    AttentionSpec,
    Flag,
    ForwardSpec,
    InputSpec,
    ModelCard,
    ModelSummary,
    PreprocessingSpec,
    canonical_hash,
    parse,
)
from robench.request import whole_number
from robench.threat_models import ThreatModel
from robench.trust import how_to_trust


@single_precision()
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
        dataset, threat_model: narrow a short name.
        device: where to put it.
        trust_pickle: execute the code that the weights file carries.
        trust_code: import the callable that the card names, wherever the card is from. Without it
            only what came with robench, and what the user has trusted
            (:mod:`robench.trust`), may name code or bring a program.

    Raises:
        UnknownNameError, UsageError, CardError: no such card, or a wrong one.
        HashMismatchError: the weights are not the card's; they were not parsed.
        UnsafeCheckpointError: loading would execute code that was not trusted.
        KeyMismatchError: the weights do not fit the architecture.
        CheckpointError: the weights are missing or damaged.
        DeviceError: there is no such device.
    """
    place = resolve_device(device)
    if isinstance(model, str):
        source, colon, address = model.partition(":")
        if colon and source in SOURCES:
            found = SOURCES[source](address)
            if isinstance(found, RobenchModel):
                return found.to(place)
            model = found
    located = _locate(model, dataset, threat_model)
    card = located.card
    trusted = card.architecture.names_code and located.trusted
    if card.architecture.imports_code and not (trusted or trust_code or located.own):
        raise UnsafeCheckpointError(
            f"the card would import and call {card.architecture.name}",
            where=located.path,
            hint=how_to_trust(located.folder),
        )
    weights = locate_weights(card.weights, located.folder)
    verify_sha256(weights, card.weights.sha256)
    remarks: list[Flag] = []
    fingerprint, identity, fingerprint_by = card.fingerprint, None, None
    if card.architecture.name == PROGRAM:
        # A program's code is its weights file, which the card's hash covers.
        network = load_program(weights, trust_pickle=trust_pickle or trusted)
    else:
        content = read_checkpoint(weights, trust_pickle=trust_pickle)
        network = build_architecture(card.architecture, card.num_classes, card.input.channels)
        state = extract_state_dict(content, card.weights.key, where=weights)
        state, left_out = fit_names(state, card.weights.strip_prefix, network, where=weights)
        load_strictly(network, state, where=weights, prefix=card.weights.strip_prefix)
        remarks += _left_out(card, left_out, further_weights(network, content, card.weights.key))
        identity = code_identity(network.eval())
        if (builder := foreign_builder(card.architecture)) is not None:
            built = code_identity(builder, runs=False)  # what it looked up shows in the network
            fingerprint_by = partial(_of_built, fingerprint, built.sha256)
            fingerprint = fingerprint_by(identity.sha256)
            remarks += _not_reusable((*identity.unique_because, *built.unique_because))
    return RobenchModel(
        network,
        num_classes=card.num_classes,
        summary=_summarise(card, network, fingerprint),
        input_spec=card.input,
        forward_spec=card.forward,
        attention=card.attention,
        preprocessing=card.preprocessing,
        draws=card.draws,
        remarks=remarks,
        identity=None if identity is None else identity.sha256,
        fingerprint_by=fingerprint_by,
    ).to(place)


def _of_built(card: str, builder: str, network: str) -> str:
    return canonical_hash([card, network, builder])


def _of_module(parts: Mapping[str, Any], network: str) -> str:
    return canonical_hash({**parts, "code": network})


def as_it_is_now(model: RobenchModel) -> RobenchModel:
    """A shallow copy whose records are those of the network as it is now.

    Whoever holds a loaded model may have trained or changed its network since: such a network is
    another one.
    """
    model = copy.copy(model)
    identity = None if model.identity is None else code_identity(model.network)
    if identity is not None and identity.sha256 != model.identity:
        _rename(model, identity.sha256)
        model.remarks += (_CHANGED, *_not_reusable(identity.unique_because))
    return model


def as_it_ran(model: RobenchModel, touched: Touched) -> None:
    """Let the model's key hold what the network ``touched`` while it ran, or never be found again.

    A module that it has imported is in the key from now on, as it is where it was imported before.
    """
    if is_unique(model):
        return
    reasons = list(touched.reads)
    loaded = [n for n in touched.loaded if n in sys.modules and not is_of_library(n)]
    if touched.loaded and model.fingerprint_by is not None:
        if model.first is not None:
            model.first.restore(model.network)
        identity = code_identity(model.network)
        _rename(model, identity.sha256)
        model.remarks += tuple(_not_reusable(identity.unique_because))
        loaded = [n for n in loaded if not {n, n.partition(".")[0]} & identity.modules]
    reasons += [f"{name}, which is imported while it runs" for name in loaded]
    if reasons and not is_unique(model):
        make_unique(model, reasons)


def make_unique(model: RobenchModel, reasons: Sequence[str]) -> None:
    """Give a model a fingerprint that is never found again; its records say why."""
    fingerprint = canonical_hash([model.summary.fingerprint, uuid.uuid4().hex])
    model.summary = model.summary.model_copy(update={"fingerprint": fingerprint})
    if not is_unique(model):
        model.remarks += tuple(_not_reusable(reasons))


def is_unique(model: RobenchModel) -> bool:
    """Whether its fingerprint is never found again."""
    return any(flag.name == _NOT_REUSABLE for flag in model.remarks)


def _rename(model: RobenchModel, identity: str) -> None:
    """Let the fingerprint be that of the network as it is now."""
    if model.fingerprint_by is None:
        fingerprint = canonical_hash([model.summary.fingerprint, identity])
    else:
        fingerprint = model.fingerprint_by(identity)
    model.summary = model.summary.model_copy(update={"fingerprint": fingerprint})
    model.identity = identity


_NOT_REUSABLE = "not_reusable"

_CHANGED = Flag(
    name="changed_since_loaded",
    severity="note",
    evidence="the network is not what it was when the model was loaded or wrapped",
)


def _left_out(card: ModelCard, names: Sequence[str], elsewhere: Sequence[str]) -> list[Flag]:
    """The flag that says which entries of the weights file were no part of the network, or where it is
    there with other weights."""
    if elsewhere:
        return [
            Flag(
                name="weights_left_out",
                severity="note",
                evidence="the weights file also has the network with other weights, at "
                f"{', '.join(map(repr, elsewhere))}; those at {card.weights.key or ''!r} were loaded",
            ),
            *_left_out(card, names, ()),
        ]
    if not names:
        return []
    modules = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
    shown = ", ".join(list(modules)[:3]) + (", …" if len(modules) > 3 else "")
    return [
        Flag(
            name="weights_left_out",
            severity="note",
            evidence=f"{len(names)} entries of the weights file do not begin with "
            f"{card.weights.strip_prefix!r} and were not loaded: {shown}",
            count=len(names),
        )
    ]


def _not_reusable(reasons: Sequence[str]) -> list[Flag]:
    """The flag that says why a record of this model will not be found again."""
    if not reasons:
        return []
    return [
        Flag(
            name=_NOT_REUSABLE,
            severity="note",
            evidence="this record is never read again in place of a run, because the model holds "
            f"what cannot be compared: {'; '.join(reasons[:3])}",
        )
    ]


def _locate(
    model: str | os.PathLike[str] | LocatedCard | ModelCard,
    dataset: str | None,
    threat_model: ThreatModel | str | None,
) -> LocatedCard:
    if isinstance(model, LocatedCard):
        return model
    if isinstance(model, ModelCard):
        # A card made in Python is its maker's own.
        return LocatedCard(model, Path.cwd() / CARD_NAME, own=True)
    check_models([model])
    path = Path(model)
    if os.path.isfile(path) and path.suffix != ".toml":
        raise UsageError(
            "is a weights file, not a card",
            where=path,
            hint="Name its architecture with --arch, or make a card with `robench zoo add`",
        )
    return find_card(model, dataset, threat_model)


def _summarise(card: ModelCard, network: nn.Module, fingerprint: str) -> ModelSummary:
    return ModelSummary(
        id=card.id,
        name=card.display_name or card.name,
        dataset=card.dataset,
        defense=card.defense,
        architecture=card.architecture.name,
        parameters=sum(p.numel() for p in network.parameters()),
        threat_model=card.threat_model,
        weights_sha256=card.weights.sha256,
        fingerprint=fingerprint,
    )


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

    Arguments and errors are those of the two; ``card_fields`` are further ones of the first.
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
    threat_model: ThreatModel | str = "Linf-8/255",
    defense: str = "unknown",
    preprocessing: PreprocessingSpec | None = None,
    remarks: Sequence[Flag] = (),
    share: bool = False,
) -> RobenchModel:
    """Evaluate a module of one's own, without a card.

    The module is copied, so that evaluating between two epochs neither freezes the parameters
    of the network in training nor sees the next step's.

    Args:
        module: takes (N, C, H, W) float inputs; its device is kept. What ``torch.compile`` or data
            parallelism made of a module stands for that module.
        num_classes, input, forward, name, dataset, threat_model, defense, preprocessing: as for
            :func:`draft_card`.
        attention: how to look at its attention.
        remarks: what every record of it says beside its figures.
        share: use the module itself, which is then frozen and put in evaluation mode.

    Raises:
        CardError: a specification has a wrong field.
        UsageError: the module cannot be copied.
    """
    input_spec = parse(InputSpec, input or {}, CardError, where=name)
    forward_spec = parse(ForwardSpec, forward or {}, CardError, where=name)
    attention_spec = parse(AttentionSpec, attention or {}, CardError, where=name)
    threat, num_classes = ThreatModel.parse(threat_model), whole_number(num_classes, "num_classes")
    module = unwrapped(module)
    if not share:
        module = copied(module, name)
    module = module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)  # TorchScript's files hold what is trained
    weights = buffer_fingerprint(module)
    identity = code_identity(module)
    parts = {
        "weights": weights,
        "num_classes": num_classes,
        "input": input_spec.model_dump(mode="json"),
        "forward": forward_spec.model_dump(mode="json"),
        "attention": attention_spec.model_dump(mode="json"),
    }
    fingerprint_by = partial(_of_module, parts)
    summary = ModelSummary(
        id=f"{dataset}/{threat.slug}/{name}",
        name=name,
        dataset=dataset,
        defense=defense,
        architecture=type(module).__name__,
        parameters=sum(p.numel() for p in module.parameters()),
        threat_model=threat,
        weights_sha256=weights,
        fingerprint=fingerprint_by(identity.sha256),
    )
    return RobenchModel(
        module,
        num_classes=num_classes,
        summary=summary,
        input_spec=input_spec,
        forward_spec=forward_spec,
        attention=attention_spec,
        preprocessing=preprocessing,
        remarks=(*remarks, *_not_reusable(identity.unique_because)),
        identity=identity.sha256,
        fingerprint_by=fingerprint_by,
    )
