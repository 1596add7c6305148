"""A module of the user's own, without card or file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from robench.errors import CardError, UsageError
from robench.models.code_identity import code_identity
from robench.models.wrapper import RobenchModel, buffer_fingerprint
from robench.records import (
    AttentionSpec,
    ForwardSpec,
    InputSpec,
    ModelSummary,
    canonical_hash,
    parse,
)
from robench.threat_models import ThreatModel

__all__ = ["wrap_module"]


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
    input_spec = parse(InputSpec, input or {}, CardError, where=name)
    forward_spec = parse(ForwardSpec, forward or {}, CardError, where=name)
    attention_spec = parse(AttentionSpec, attention or {}, CardError, where=name)
    threat = ThreatModel.parse(threat_model)
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
            "code": code_identity(module),
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
