"""What a model with random outputs says: the class that most of several passes give.

If one misclassification among hundreds of draws counted, every such model would end at 0 %, even on
clean inputs. So clean predictions and verdicts come from draws of their own, that no search has
seen. They begin at the same state of the generators each time, so that the same seed gives the same
record on the same machine; other batches are other draws.
"""

import torch
from torch import Tensor, nn

from robench.records import Flag
from robench.seeding import own_stream

DRAWS = 32
"""Passes of one verdict"""
_BELOW_A_VOTE = 0.5 / DRAWS


class MostOfDraws(nn.Module):
    """A model's votes in place of its logits.

    Args:
        model: (N, C, H, W) → logits (N, K).
        seed: of the draws.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model = model
        self.seed = seed

    def forward(self, inputs: Tensor) -> Tensor:
        """The share of passes that each class wins, float32 (N, K); ties go by mean probability."""
        votes: Tensor | None = None
        for draw in range(DRAWS):
            with own_stream(self.seed + draw, inputs.device):
                logits = self.model(inputs).float()
            seen = _BELOW_A_VOTE * logits.softmax(dim=1)
            seen = seen.scatter_add(
                1, logits.argmax(dim=1, keepdim=True), torch.ones_like(seen[:, :1])
            )
            # Of outputs that are not finite there is no winner.
            seen = torch.where(logits.isfinite().all(dim=1, keepdim=True), seen, torch.nan)
            votes = seen if votes is None else votes + seen
        assert votes is not None
        return votes / DRAWS


def drawn_flag() -> Flag:
    """How a record says that its verdicts are of this kind."""
    return Flag(
        name="judged_by_draws",
        severity="note",
        evidence=f"clean predictions and verdicts are what most of {DRAWS} passes say, margins the "
        "differences of their shares",
    )
