"""What a model with random outputs says, by repeated draws that no search has seen.

If one misclassification among hundreds of draws counted, every such model would end at 0 %, even on
clean inputs. So a sample is wrong if more than half of K passes are: its clean prediction, and the
verdict on whatever an attack proposes. They are always the same K draws of a sample (common random
numbers: what is not of the perturbation is in both); a find is judged once more, by K further draws
that nothing was chosen by, and theirs is the last word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from robench import seeding
from robench.attacks.pgd import fingerprint
from robench.evaluation.adjudicate import Adjudicator, Verdicts
from robench.models.keyed_draws import drawn_by, draws_by_keys, own_sizes, with_rows_to_spare
from robench.models.wrapper import RobenchModel
from robench.records.draws import margin_of
from robench.seeding import begin_stream, own_stream

_COUNTED = 0.01
"""What a class's votes are short of a whole number by rounding, at most"""


@dataclass(frozen=True)
class Draws:
    """How a model's random draws are made."""

    seed: int
    """Of all of them"""
    sizes: frozenset[int]
    """As :func:`robench.models.keyed_draws.own_sizes`"""
    keyed: bool = True
    """Whether they are functions of samples' keys; else those of a pass begin at one seed"""

    @classmethod
    def of(cls, model: RobenchModel, inputs: Tensor, seed: int) -> Draws:
        """Those of a model, seen on a few inputs (N, C, H, W)."""
        sizes = own_sizes(model, inputs.shape[1:])
        return cls(seed, sizes, draws_by_keys(model, inputs))

    @contextmanager
    def each(
        self, points: Tensor, purpose: str, count: int, fresh: bool = False
    ) -> Iterator[tuple[Tensor, Iterator[AbstractContextManager[None]]]]:
        """``count`` draws for what ``points`` (N, C, H, W) are: which of them pass, int64 (≥ N,), and
        what each pass is to be made in. Other purposes have other draws. Where draws are not keyed they
        are the same each time, or, if ``fresh``, go on where the generators stand."""
        device = points.device
        rows = with_rows_to_spare(len(points), self.sizes, device)
        rows = torch.arange(len(points), device=device) if rows is None else rows
        if fresh and not self.keyed:
            yield rows, (nullcontext() for _ in range(count))
            return
        numbers, name = torch.arange(count, device=device)[:, None], seeding.tag(purpose)
        keys = seeding.derive(fingerprint(points)[rows], name, self.seed)
        keys = seeding.derive(keys.expand(count, -1), numbers)
        seeds = seeding.derive(torch.tensor([[name]], device=device), self.seed, numbers)
        with own_stream(self.seed, device):
            passes = zip(keys.tolist(), seeds.flatten().tolist(), strict=True)
            if self.keyed:
                yield rows, (drawn_by(mine, seed, device) for mine, seed in passes)
            else:
                yield rows, (_begun(seed, device) for _, seed in passes)


@contextmanager
def _begun(seed: int, device: torch.device) -> Iterator[None]:
    begin_stream(seed, device)
    yield


class VotesOfDraws(nn.Module):
    """A model's votes in place of its logits.

    Args:
        model: (N, C, H, W) → logits (N, K).
        draws: how they are drawn.
        count: passes of one verdict.
        purpose: what they are for; others have other draws.
    """

    def __init__(
        self, model: nn.Module, draws: Draws, count: int, purpose: str = "verdict"
    ) -> None:
        super().__init__()
        self.model = model
        self.draws = draws
        self.count = count
        self.purpose = purpose

    def forward(self, points: Tensor, samples: Tensor | None = None) -> Tensor:
        """The share of passes that each class wins, float32 (N, K), and below half a vote of its mean
        probability: of points (N, C, H, W), by the draws of the clean ``samples`` of the same shape, or
        of their own where they are these."""
        votes: Tensor | None = None
        of = points if samples is None else samples
        with self.draws.each(of, self.purpose, self.count) as (rows, draws):
            asked = points[rows]
            for draw in draws:
                with draw:
                    logits = self.model(asked).float()[: len(points)]
                seen = (0.5 / self.count) * logits.softmax(dim=1)
                seen = seen.scatter_add(
                    1, logits.argmax(dim=1, keepdim=True), torch.ones_like(seen[:, :1])
                )
                # Of outputs that are not finite there is no winner.
                seen = torch.where(logits.isfinite().all(dim=1, keepdim=True), seen, torch.nan)
                votes = seen if votes is None else votes + seen
        assert votes is not None
        return votes / self.count


def by_majority(votes: Tensor, classes: Tensor, draws: int, towards: bool = False) -> Tensor:
    """Votes float32 (N, K) of so many draws as logits whose largest is the class of ``classes`` (N,) if at
    least half of the draws are its own; ``towards`` it, if more than half are.

    Its lead over the largest other is :func:`robench.records.draws.margin_of`.
    """
    place = classes[:, None]
    own = (votes.gather(1, place) * draws + _COUNTED).floor()
    lead = margin_of(own, draws, towards)
    others = votes.scatter(1, place, -torch.inf).amax(dim=1, keepdim=True)
    return votes.scatter(1, place, others + lead)


@dataclass
class _OneLook(Adjudicator):
    """Judges by the draws of one purpose."""

    model: VotesOfDraws

    def judged(self, points: Tensor, inputs: Tensor, classes: Tensor) -> Tensor:
        """The votes on points, by the draws of their clean inputs, as logits."""
        votes = self.logits(points, forgiving=True, samples=inputs)
        towards = self.threat_model.targets is not None
        return by_majority(votes, classes, self.model.count, towards)


@dataclass
class DrawsAdjudicator(_OneLook):
    """Judges a model with random outputs: a find by further draws again, which have the last word."""

    last: _OneLook = field(init=False)

    def __post_init__(self, batch_size: int) -> None:
        super().__post_init__(batch_size)
        votes = self.model
        again = VotesOfDraws(votes.model, votes.draws, votes.count, "last word")
        self.last = _OneLook(again, self.threat_model, batch_size)

    def judge(self, points: Tensor, inputs: Tensor, classes: Tensor) -> Verdicts:
        """As :meth:`Adjudicator.judge`."""
        first = super().judge(points, inputs, classes)
        rows = first.fooled.nonzero().squeeze(1)
        if len(rows) == 0:
            return first
        last = self.last.judge(points[rows], inputs[rows], classes[rows])
        told = {
            item.name: getattr(first, item.name).index_copy(0, rows, getattr(last, item.name))
            for item in fields(first)
        }
        return replace(first, **told)
