"""Attacks behind an adapter: whole batches in, proposals out, judged like any other's."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from robench.attacks.base import BatchAttack
from robench.errors import RobenchError
from robench.evaluation.adjudicate import Adjudicator, Verdicts
from robench.evaluation.samples import Samples, SearchResult

_UNJUDGED = "the model fails, or is not finite, at the attack's proposal"


def run_batch_attack(
    attack: BatchAttack, adjudicator: Adjudicator, samples: Samples, seed: int
) -> SearchResult:
    """A foreign attack's proposals and the verdicts on them.

    How the foreign loop shares its passes out among the samples is not known: they are counted
    for all together.

    What the adjudicator judges with, the original model, is attacked; the samples are correctly
    classified ones.

    Raises:
        RobenchError: the adapter refuses its arguments. What the foreign loop itself raises is
            kept as the samples' error: none of them was tested.
    """
    counted = _Counted(adjudicator.model)
    errors: dict[int, str] = {}
    try:
        proposed = attack.propose(counted, samples.inputs, samples.labels, seed)
    except RobenchError:
        raise
    except Exception as error:
        # A foreign loop gives no hint which sample it failed on.
        proposed = samples.inputs
        errors = dict.fromkeys(range(len(samples)), f"{type(error).__name__}: {error}")
    result, _ = judge_proposals(proposed, adjudicator, samples, errors)
    result.shared_forwards, result.shared_backwards = counted.forwards, counted.backwards
    return result


def judge_proposals(
    proposed: Tensor,
    adjudicator: Adjudicator,
    samples: Samples,
    errors: Mapping[int, str] | None = None,
) -> tuple[SearchResult, Verdicts]:
    """The verdicts on proposals (n, C, H, W), and what they come to, however they were made.

    ``errors`` are those of samples that have no proposal, because their model failed. Proposals at
    which it fails now are errors too.
    """
    result = SearchResult.nothing_yet(samples, 1)
    result.errors = dict(errors or {})
    verdicts = adjudicator.judge(proposed, samples.inputs, samples.labels)
    for index in (verdicts.allowed & ~verdicts.finite).nonzero().squeeze(1).tolist():
        result.errors.setdefault(index, _UNJUDGED)
    broken, shown = verdicts.broken & ~result.errored, verdicts.shown & ~result.errored
    result.keep(shown.nonzero().squeeze(1), proposed[shown], verdicts.at(shown))
    result.settled = torch.where(broken, 0, 1)
    result.closest_margin = torch.where(shown & ~broken, verdicts.margin, torch.inf)
    result.search_margins = verdicts.margin[:, None]
    return result, verdicts


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
