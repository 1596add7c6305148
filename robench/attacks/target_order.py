"""In which order targeted attacks aim at the wrong classes.

``logits``: from the largest logit on the clean input down, as the reference does. ``malt``: from the
nearest boundary on, by the linear models there (Melamed et al., "MALT powers up adversarial attacks",
NeurIPS 2024, arXiv 2407.02240): the lead of the label over a class, divided by how fast it can shrink.
With more classes than targets it also selects which are aimed at; with no more, the searches are the
same ones in another order.
"""

import torch
from torch import Tensor

from robench.attacks.base import Query
from robench.geometry import DUAL
from robench.registry import unknown_name
from robench.threat_models import Norm

TARGET_ORDERS = ["logits", "malt"]
_CANDIDATES = 100  # the paper's: classes with the largest logits


def require_target_order(order: str) -> None:
    """Check a name.

    Raises:
        UnknownNameError: it is none of :data:`TARGET_ORDERS`.
    """
    if order not in TARGET_ORDERS:
        raise unknown_name("target order", order, TARGET_ORDERS)


def nearest_ranks(
    query: Query, inputs: Tensor, labels: Tensor, clean_logits: Tensor, norm: Norm, targets: int
) -> Tensor:
    """MALT's order, as ranks of the wrong classes by their logits, 0 the largest: int64 (B, M).

    M is 100, or ``targets`` where that is more, and no more than there are wrong classes; a rank is
    what :func:`robench.attacks.base.nth_best_rival` takes.

    Args:
        query: gives one forward pass and M backward passes.
        inputs: clean ones, (B, C, H, W).
        labels: int64 (B,).
        clean_logits: (B, K).
        norm: the ball's.
        targets: how many will be aimed at.
    """
    rivals = clean_logits.scatter(1, labels[:, None], -torch.inf)
    count = min(max(_CANDIDATES, targets), rivals.shape[1] - 1)
    candidates = rivals.argsort(dim=1, descending=True)[:, :count]
    steepness = query.steepness(inputs, candidates, labels, DUAL[norm])
    lead = clean_logits.gather(1, labels[:, None]) - clean_logits.gather(1, candidates)
    # Where nothing is known of a boundary it comes last.
    known = steepness.isfinite() & (steepness > 0)
    return torch.where(known, lead / steepness, torch.inf).argsort(dim=1, stable=True)


def searches_of(ranks: Tensor, targets: int, restarts: int) -> Tensor:
    """Numbers of the searches for the first ``targets`` ranks (B, M), ``restarts`` of each in turn."""
    numbers = ranks[:, :targets, None] * restarts + torch.arange(restarts, device=ranks.device)
    return numbers.flatten(1)
