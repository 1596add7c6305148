"""Attacks behind an adapter: whole batches in, proposals out, judged like any other's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.attacks.base import BatchAttack
from robench.errors import RobenchError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.samples import Found, Samples

__all__ = ["propose"]


def propose(
    attack: BatchAttack, model: nn.Module, adjudicator: Adjudicator, samples: Samples, seed: int
) -> Found:
    """A foreign attack's proposals and the verdicts on them.

    Args:
        attack: the adapter.
        model: what it attacks, inputs (n, C, H, W) → logits (n, K).
        adjudicator: judges the proposals with the original model.
        samples: correctly classified ones.
        seed: of its draws.

    Raises:
        RobenchError: the adapter refuses its arguments. What the foreign loop itself raises is
            kept as the samples' error: none of them was tested.
    """
    counted = _Counted(model)
    count = len(samples)
    errors: dict[int, str] = {}
    try:
        proposed = attack.propose(counted, samples.inputs, samples.labels, seed)
    except RobenchError:
        raise
    except Exception as error:
        # A foreign loop gives no hint which sample it failed on.
        proposed = samples.inputs
        errors = dict.fromkeys(range(count), f"{type(error).__name__}: {error}")
    verdicts = adjudicator.judge(proposed, samples.inputs, samples.labels)
    for index in (verdicts.allowed & ~verdicts.finite).nonzero().squeeze(1).tolist():
        errors.setdefault(index, "the model fails, or is not finite, at the attack's proposal")
    failed = torch.zeros_like(verdicts.broken)
    failed[list(errors)] = True
    broken = verdicts.broken & ~failed
    zeros = torch.zeros(count, dtype=torch.int64, device=samples.inputs.device)
    found = Found(
        adv_inputs=proposed.clone(),
        broken=broken,
        rank=torch.where(broken, 0, -1),
        prediction=verdicts.prediction,
        margin=verdicts.margin,
        size=verdicts.size,
        closest_margin=torch.where(broken, torch.inf, verdicts.margin),
        found_size=torch.full_like(verdicts.margin, torch.nan),
        forwards=zeros + counted.forwards // max(count, 1),
        backwards=zeros + counted.backwards // max(count, 1),
        rank_margins=verdicts.margin[:, None],
        errors=errors,
    )
    found.forget(failed | ~verdicts.shown, samples.inputs)
    return found


class _Counted(nn.Module):
    """Counts inputs that go through a model, forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.forwards += len(inputs)
        logits: Tensor = self.model(inputs)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
