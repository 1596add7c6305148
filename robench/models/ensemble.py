"""Several models as one: the mean of what they answer, as something to attack in their place.

Inputs made for an ensemble carry over to other models better than those made for one (Liu et al.,
"Delving into transferable adversarial examples and black-box attacks", ICLR 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robench.errors import UsageError
from robench.models.wrapper import RobenchModel
from robench.records import AttentionSpec, InputSpec, ModelSummary, canonical_hash
from robench.registry import unknown_name

MEANS = ("logits", "probabilities")
"""What the mean is taken of"""


class Mean(nn.Module):
    """Answers with the mean of its members' logits, or with the logarithm of the mean of their
    probabilities.

    Args:
        members: each maps inputs (N, C, H, W) in [0, 1] to logits (N, K).
        of: one of :data:`MEANS`.
    """

    def __init__(self, members: Sequence[nn.Module], of: str) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.of = of
        # What is looked at for features: of several networks there are none.
        self.votes = nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] → (N, K)."""
        logits: Tensor = self.votes(torch.stack([member(inputs) for member in self.members]))
        if self.of == "logits":
            return logits.mean(dim=0)
        return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(self.members))


def ensemble(members: Sequence[RobenchModel], of: str = "logits") -> RobenchModel:
    """The mean of models as a model, whose members' networks it shares.

    It is the same model in whatever order they are named.

    Raises:
        UnknownNameError: ``of`` is none of :data:`MEANS`.
        UsageError: fewer than two different models, or of other shapes of inputs, or other classes.
    """
    if of not in MEANS:
        raise unknown_name("mean of an ensemble", of, list(MEANS))
    members = sorted(
        {member.summary.fingerprint: member for member in members}.values(),
        key=lambda member: (member.summary.name, member.summary.fingerprint),
    )
    names = ", ".join(member.summary.name for member in members)
    if len(members) < 2:
        raise UsageError(f"an ensemble of one model, {names}", hint="Name two or more")
    for what, values in (
        ("channels", {member.input_spec.channels for member in members}),
        ("classes", {member.num_classes for member in members}),
    ):
        if len(values) > 1:
            raise UsageError(
                f"an ensemble of models of {' and '.join(map(str, sorted(values)))} {what}: {names}",
                hint="Choose models that classify the same images into the same classes",
            )
    first, parts = members[0].summary, [member.summary for member in members]
    name = f"{'+'.join(part.name for part in parts)} ({of})"
    content = {"ensemble": of, "members": [part.fingerprint for part in parts]}
    summary = ModelSummary(
        id=f"{first.dataset}/{first.threat_model.slug}/{name}",
        name=name,
        dataset=first.dataset,
        defense="ensemble",
        architecture=f"mean of {len(parts)} models' {of}",
        parameters=sum(part.parameters for part in parts),
        threat_model=first.threat_model,
        weights_sha256=canonical_hash([part.weights_sha256 for part in parts]),
        fingerprint=canonical_hash(content),
    )
    return RobenchModel(
        Mean(members, of),
        num_classes=members[0].num_classes,
        summary=summary,
        input_spec=InputSpec(channels=members[0].input_spec.channels),
        attention=AttentionSpec(method="none", feature_layer="votes"),
        remarks=list(dict.fromkeys(flag for member in members for flag in member.remarks)),
    )
