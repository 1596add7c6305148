"""Hidden outputs: whether a network's answer is the sum of what its own heads say.

Attacks follow the outputs. Where these are labels, probabilities without digits, a vote, or the answer of
a detector, the logits that were there inside are withheld; and where a head decides something on the way,
its decision is. So the outputs, on the samples and around them, are fitted by what the network's heads
(:mod:`robench.stand_ins.hidden`) put out: a scale for each, and whatever offset a sample needs, which
leaves temperatures, log-softmax and means of ensembles nothing to explain. What is left is hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robench.doctor.subject import Subject
from robench.errors import ModelError
from robench.records import Diagnosis
from robench.stand_ins.hidden import Head, find_heads, outputs_inside
from robench.threat_models import ThreatModel
from robench.validity.probing import Probing

_LEFT = 0.02
"""Share of the outputs' size that no sum of heads explains; of sound models the largest is 4e-8
(``benchmarks/results/indicators.md``)."""
_FEWEST_CLASSES = 3
"""Of two classes any number tells."""


def hidden_outputs(subject: Subject, threat_model: ThreatModel, seed: int) -> Diagnosis:
    """What of the outputs the heads do not explain, on correctly classified samples."""

    def undefined(why: str) -> Diagnosis:
        return Diagnosis(test="hidden_outputs", outcome="undefined", evidence=why)

    model, probing = subject.model, Probing(subject, threat_model, seed)
    if model.num_classes < _FEWEST_CLASSES:
        return undefined(f"of {model.num_classes} classes any number tells which it is")
    try:
        heads = list(find_heads(model, subject.inputs, subject.labels))
    except ModelError as error:
        return undefined(error.what)
    if not heads:
        return undefined("no layer with weights puts out as many numbers as there are classes")
    points = [
        subject.inputs,
        probing.moved(probing.noise(0), 1),
        probing.moved(probing.noise(1), 1),
    ]
    seen = [_heads_and_outputs(probing, heads, part) for part in points]
    said = torch.cat([part[0] for part in seen], dim=1)
    left = unexplained(said, torch.cat([part[1] for part in seen]))
    masked = left > _LEFT
    names = ", ".join(map(str, heads[:3])) + (" …" if len(heads) > 3 else "")
    return Diagnosis(
        test="hidden_outputs",
        outcome="masked" if masked else "sound",
        evidence=f"no sum of what the heads inside say ({len(heads)}: {names}) explains {left:.2g} of the "
        "outputs' size",
        value=left,
        threshold=_LEFT,
        asks_for=("hidden", "scale-free") if masked else (),
    )


@torch.no_grad()
def _heads_and_outputs(
    probing: Probing, heads: list[Head], points: Tensor
) -> tuple[Tensor, Tensor]:
    """What heads (H, N, K) and the model (N, K) say of points, float64 on the CPU, of the same draws."""
    model = probing.subject.model
    with probing.draws():
        seen = dict(outputs_inside(model, points, {head.module for head in heads}))
    silent = torch.zeros(len(points), model.num_classes)
    said = [seen.get(head, silent).cpu().double() for head in heads]
    return torch.stack(said), probing.logits(points)


def unexplained(heads: Tensor, outputs: Tensor) -> float:
    """The size of what is left of outputs (N, K) once the best sum of heads (H, N, K) is taken away, as a
    share of theirs; what is the same for all classes of a sample counts for nothing."""
    own, said = (values - values.mean(dim=-1, keepdim=True) for values in (outputs, heads))
    columns, target = said.flatten(1).T, own.flatten()
    scale = columns.norm(dim=0).clamp_min(1e-30)
    fitted = torch.linalg.lstsq(columns / scale, target[:, None], driver="gelsd").solution
    rest = target - (columns / scale @ fitted).squeeze(1)
    return float(rest.norm() / target.norm().clamp_min(1e-30))
