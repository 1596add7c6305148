"""A model with random outputs as searches see it: means over its draws (expectation over transformation).

Athalye, Engstrom, Ilyas & Kwok, "Synthesizing robust adversarial examples", ICML 2018. It is here that
they are averaged, so that no attack knows of it: gradients of the loss for those that follow them, and
logits for those that ask for nothing else, such as Square.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from robench.acceleration.search_models import SearchModel
from robench.attacks.base import Attack, Gradient
from robench.attacks.losses import LOSSES, Loss
from robench.evaluation.repeated_draws import Draws
from robench.threat_models import Norm

_LADDER = (4, 8, 16, 32, 64)
"""Draws of a mean: the first of these numbers at which it has settled"""
_SETTLED = 0.95
"""Cosine of the angle between gradients that are means of other draws, on average over samples"""
_SAMPLES = 16


@dataclass(eq=False)
class AveragedModel(SearchModel):
    """Means over so many draws, each a function of the seed and of the point that is asked."""

    draws: Draws = field(kw_only=True)
    count: int = field(kw_only=True)
    purpose: str = field(default="search", kw_only=True)

    @classmethod
    def of(cls, model: SearchModel, draws: Draws, count: int) -> AveragedModel:
        """What ``model`` gives, averaged."""
        own = {name: value for name, value in vars(model).items() if name in _FIELDS}
        return cls(**own, draws=draws, count=1).with_draws(count)

    def with_draws(self, count: int) -> AveragedModel:
        """The same with ``count`` draws at least."""
        count = max(count, self.count)
        passes = self.passes // self.count * count
        description = self.description.partition(", means of ")[0]
        return replace(
            self,
            description=f"{description}, means of {count} draws",
            passes=passes,
            logit_passes=count,
            count=count,
        )

    def logits(self, points: Tensor) -> Tensor:
        """The mean logits."""
        ask = super().logits
        (logits,) = self._mean(points, lambda asked, _: (ask(asked),))
        return logits

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """Means of logits, losses and gradients of the loss."""
        ask = super().gradient
        return Gradient(*self._mean(points, lambda asked, rows: ask(asked, loss.at(rows))))

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Means of logits and of their gradients."""
        ask = super().jacobian
        logits, slopes = self._mean(points, lambda asked, _: ask(asked))
        return logits, slopes

    def steepness(
        self, points: Tensor, rivals: Tensor, labels: Tensor, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """Means of logits and of the slopes' norms."""
        ask = super().steepness
        logits, norms = self._mean(
            points, lambda asked, rows: ask(asked, rivals[rows], labels[rows], norm)
        )
        return logits, norms

    def _mean(
        self, points: Tensor, ask: Callable[[Tensor, Tensor], Sequence[Tensor]]
    ) -> list[Tensor]:
        total = list[Tensor]()
        with self.draws.each(points, self.purpose, self.count, fresh=True) as (rows, draws):
            asked = points[rows]
            for draw in draws:
                with draw:
                    seen = ask(asked, rows)
                total = [a + b for a, b in zip(total, seen, strict=True)] if total else list(seen)
        return [column[: len(points)] / self.count for column in total]


_FIELDS = frozenset(SearchModel.__dataclass_fields__)


def averaged(model: nn.Module, draws: Draws, inputs: Tensor, labels: Tensor) -> AveragedModel:
    """A model as searches see it, with as many draws as it takes for its gradients to settle.

    It is seen on a few inputs (N, C, H, W) and labels (N,): two means over other draws point the same
    way. Where gradients raise, the fewest do.
    """
    inputs, labels = inputs[:_SAMPLES], labels[:_SAMPLES]
    loss = Loss(LOSSES["margin"], labels, labels)
    one = AveragedModel.of(SearchModel(model), draws, 1)
    for count in _LADDER:
        try:
            means = [
                replace(one.with_draws(count), purpose=purpose).gradient(inputs, loss).gradient
                for purpose in ("settled", "settled?")
            ]
        except Exception:  # A model may refuse gradients: the searches meet it, sample by sample.
            return one.with_draws(_LADDER[0])
        first, other = (mean.flatten(1).double() for mean in means)
        cosines = nn.functional.cosine_similarity(first, other, eps=1e-300)
        # A gradient of zero points nowhere, however often it is asked for.
        known = cosines[(first != 0).any(dim=1) & (other != 0).any(dim=1) & cosines.isfinite()]
        if not len(known) or float(known.mean()) >= _SETTLED:
            return one.with_draws(count)
    return one.with_draws(_LADDER[-1])


def without_draws_of_its_own(
    attack: Attack[Any], model: SearchModel
) -> tuple[Attack[Any], SearchModel]:
    """An attack that averages gradients itself (``eot``), and what it searches on: where that is averaged
    already, it has as many draws as the attack wants, and the attack asks once."""
    wanted = getattr(attack, "eot", 1)
    if wanted == 1 or not isinstance(model, AveragedModel):
        return attack, model
    return replace(attack, eot=1), model.with_draws(wanted)  # type: ignore[call-arg]
