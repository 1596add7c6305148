"""A card for a weights file that came without one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import ValidationError

from robench.errors import CardError, CheckpointError
from robench.models.architectures.build import build_architecture
from robench.models.inspection import CheckpointInspection, inspect_checkpoint, matching_prefix
from robench.models.programs import PROGRAM
from robench.records import (
    ArchitectureSpec,
    AttentionSpec,
    ForwardSpec,
    InputSpec,
    ModelCard,
    PreprocessingSpec,
    WeightsSpec,
    validation_problems,
)
from robench.threat_models import ThreatModel

__all__ = ["draft_card"]


def draft_card(
    path: str | os.PathLike[str],
    architecture: str | ArchitectureSpec,
    *,
    num_classes: int,
    dataset: str = "custom",
    threat_model: ThreatModel | str = "Linf-8/255",
    name: str | None = None,
    defense: str = "unknown",
    input: InputSpec | None = None,
    forward: ForwardSpec | None = None,
    attention: AttentionSpec | None = None,
    preprocessing: PreprocessingSpec | None = None,
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
        preprocessing: how images of other sizes are prepared for it.
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
            preprocessing=preprocessing,
        )
    except ValidationError as error:
        raise CardError(validation_problems(error), where=path) from error


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
