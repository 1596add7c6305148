"""What a model gives for a few samples, asked beside an evaluation: its outputs, and how they rise.

No pass here counts as an attack's, draws from anybody's generators, or leaves the model changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.attacks.losses import Loss, cross_entropy, margin, margin_loss
from robench.datasets import Dataset
from robench.evaluation.queries import Queries
from robench.models.wrapper import RobenchModel
from robench.probes import FirstState, undisturbed
from robench.records import Slopes
from robench.seeding import own_stream

SAMPLES = 64
"""That are asked, at most"""
_VALUES, _FEWEST = 2**21, 8  # of all their inputs; and so many samples at least
_OF_A_PART = 4
_SAME = 1e-3  # by what share of a sample's largest logit machines and batches may differ
_ROUNDINGS = 8  # of a number in half precision, from the inputs to a logit
_NOISES = 16  # that another batch makes of a logit
_ASIDE = 0.03  # how far an input beside a sample is; no whole grey level, where roundings jump
_SAME_SLOPE = 0.05  # by what share of a gradient's L2 norm slopes may differ
_TURNS, _JITTER, _WOBBLES = 12, 2.0**-16, 3.0
_DIGITS = 7  # of a figure that is kept


def few_rows(dataset: Dataset, parts: Sequence[Sequence[str]] = ()) -> list[int]:
    """Rows of samples from all over a data set, always the same ones; of each part, given by its
    samples' ids, some at least."""
    count = min(SAMPLES, max(_FEWEST, _VALUES // math.prod(dataset.input_shape)))
    order = by_key(dataset.sample_ids)
    chosen = set(order[:count])
    for part in parts:
        own = set(part)
        chosen.update([row for row in order if dataset.sample_ids[row] in own][:_OF_A_PART])
    return sorted(chosen)


def by_key(sample_ids: Sequence[str]) -> list[int]:
    """Places of samples, in the order in which they are asked."""
    order: list[int] = seeding.sample_keys(0, sample_ids).argsort(stable=True).tolist()
    return order


@dataclass(frozen=True)
class Rise:
    """Of k samples, float64 (k, 6), columns as those of :class:`~robench.records.Slopes`: the figures,
    NaN where the model failed, and the size of what each is a share of."""

    figures: Tensor
    scales: Tensor


@dataclass(frozen=True)
class Given:
    """What a model gives for inputs (k, C, H, W) in [0, 1] with int64 labels (k,), on the CPU."""

    model: RobenchModel
    inputs: Tensor
    labels: Tensor
    ids: Sequence[str]
    """Of the samples"""
    device: torch.device

    @classmethod
    def of(
        cls, model: RobenchModel, dataset: Dataset, rows: Sequence[int], device: torch.device
    ) -> Given:
        """For clean samples."""
        ids = [dataset.sample_ids[row] for row in rows]
        return cls(model, dataset.batch(rows), dataset.labels[list(rows)], ids, device)

    # --- outputs ---------------------------------------------------------------------------

    @cached_property
    def logits(self) -> Tensor:
        """Float32 (k, K); NaN where the model fails."""
        return self._logits(SAMPLES)

    def _logits(self, batch_size: int) -> Tensor:
        queries = self._queries(batch_size)
        with own_stream(0, self.device), as_it_was_given(self.model):
            return queries.logits(self.inputs.to(self.device)).cpu()

    def _queries(self, batch_size: int) -> Queries:
        queries = Queries(SearchModel(self.model), self.model.num_classes, batch_size)
        queries.reset(len(self.inputs), self.device)
        return queries

    @property
    def _third(self) -> int:
        return min(SAMPLES, len(self.inputs)) // 3 + 1

    @cached_property
    def coarseness(self) -> float:
        """By what share of its largest logit an output may differ by rounding alone, as it is seen in
        other batches and in the types of the model's numbers."""
        again = self._logits(self._third)
        scale = self.logits.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        apart = ((again - self.logits).abs().amax(dim=1) / scale).nan_to_num(0.0)
        types = {value.dtype for value in self.model.state_dict().values()}
        with torch.no_grad(), own_stream(0, self.device), as_it_was_given(self.model):
            types |= {out.dtype for out in self._first()}
        eps = [torch.finfo(kind).eps for kind in types if kind.is_floating_point]
        return max(_SAME, _ROUNDINGS * max(eps, default=0.0), _NOISES * float(apart.max()))

    def _first(self) -> Iterator[Tensor]:
        try:
            yield self.model(self.inputs[:1].to(self.device))
        except Exception:  # Whatever a model may raise: its type is not known then.
            return

    def unlike(self, predictions: Tensor, margins: Tensor) -> Tensor:
        """bool (k,): samples whose outputs are not those that were told, int64 predictions (k,), -1
        where none is told, and float64 margins (k,), NaN where none is told."""
        found = self._unlike(predictions, margins, _SAME)
        if bool(found.any()):
            found = self._unlike(predictions, margins, self.coarseness)
        return found

    def _unlike(self, predictions: Tensor, margins: Tensor, share: float) -> Tensor:
        largest = self.logits.amax(dim=1)
        place = predictions.clamp(0, self.logits.shape[1] - 1).unsqueeze(1)
        room = 2 * share * self.logits.abs().amax(dim=1)
        # Where two classes are as likely, either may be the prediction. A NaN fails every comparison.
        same = self.logits.gather(1, place).squeeze(1) >= largest - room
        near = (margin(self.logits, self.labels) - margins).abs() <= room
        known = predictions >= 0
        return (known & ~same) | (~margins.isnan() & ~near)

    # --- slopes ----------------------------------------------------------------------------

    @cached_property
    def rise(self) -> Rise:
        """How the outputs rise at the inputs, and beside them."""
        return self._rise(SAMPLES, 0)

    def _rise(self, batch_size: int, turn: int) -> Rise:
        """In other turns than 0 by other draws, and as far from the inputs as rounding may lead."""
        keys = seeding.sample_keys(0, self.ids)

        def signs(purpose: str) -> Tensor:
            return seeding.signs(seeding.derive(keys, seeding.tag(purpose)), points.shape[1:])

        points = self.inputs
        if turn:  # inwards, so that what is 0 or 1 does not stay so
            own = seeding.derive(keys, seeding.tag("jitter"), turn)
            points = points.lerp(seeding.uniform(own, points.shape[1:]), _JITTER)
        beside = (points + _ASIDE * signs("beside")).clamp(0, 1)
        asked = (points, margin_loss, "slope"), (beside, _ranged_cross_entropy, "slope beside")
        columns = []
        for inputs, loss, direction in asked:
            queries, labels = self._queries(batch_size), self.labels.to(self.device)
            with own_stream(turn, self.device), as_it_was_given(self.model):
                found = queries.gradient(inputs.to(self.device), Loss(loss, labels, labels))
            logits, gradient = found.logits.cpu(), found.gradient.cpu().double()
            logits[list(queries.failures)] = math.nan
            size = gradient.flatten(1).norm(dim=1) + 0.0 * logits[:, 0]
            slope = (gradient * signs(direction)).flatten(1).sum(dim=1) + 0.0 * size
            reach = 2 * logits.abs().amax(dim=1)
            columns += [(margin(logits, self.labels), reach), (slope, size), (size, size)]
        figures, scales = zip(*columns, strict=True)
        return Rise(torch.stack(figures, dim=1).double(), torch.stack(scales, dim=1).double())

    @cached_property
    def wobble(self) -> Tensor:
        """float64 (k, 6): by how much figures differ within a rounding of the inputs, in other batches
        and draws: where a maximum has two places, and between a ReLU's sides, slopes jump."""
        turns = [self._rise(self._third, turn).figures for turn in range(1, _TURNS + 1)]
        apart = [(figures - self.rise.figures).abs().nan_to_num(0.0) for figures in turns]
        return torch.stack(apart).amax(dim=0)

    def slopes(self) -> Slopes:
        """As they are kept in a record."""
        columns: dict[str, tuple[float | None, ...]] = {
            name: tuple(None if math.isnan(v) else float(f"{v:.{_DIGITS}g}") for v in column)
            for name, column in zip(Slopes.columns(), self.rise.figures.T.tolist(), strict=True)
        }
        return Slopes(samples=tuple(self.ids), **columns)

    def rising_unlike(self, told: Slopes) -> tuple[Tensor, Tensor]:
        """Of k samples and 6 figures, bool (k, 6) each: which are told, and which of them are not those
        that the model gives. Where the model failed once and not again, all are not."""
        rows = {name: row for row, name in enumerate(told.samples)}
        none = [math.nan] * len(Slopes.columns())
        columns = [getattr(told, name) for name in Slopes.columns()]
        kept = [[math.nan if v is None else v for v in row] for row in zip(*columns, strict=True)]
        figures = torch.tensor(
            [kept[rows[name]] if name in rows else none for name in self.ids], dtype=torch.float64
        )
        known = torch.tensor([[name in rows] for name in self.ids]).expand_as(figures)
        share = torch.tensor([_SAME, _SAME_SLOPE, _SAME_SLOPE] * 2, dtype=torch.float64)
        if bool((found := known & self._apart(figures, share, 0.0)).any()):
            share = share.clamp(min=self.coarseness)
            found = known & self._apart(figures, share, _WOBBLES * self.wobble)
        return known, found

    def _apart(self, figures: Tensor, share: Tensor, room: Tensor | float) -> Tensor:
        scales = self.rise.scales.clone()
        for slope, size in ((1, 2), (4, 5)):
            scales[:, slope] = scales[:, size] = scales[:, size].maximum(figures[:, size])
        same = (self.rise.figures - figures).abs() <= share * scales + room
        return ~(same | (self.rise.figures.isnan() & figures.isnan()))


def _ranged_cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits in units of their range: all classes have a say, however sure a model is."""
    reach = logits.amax(dim=1, keepdim=True) - logits.amin(dim=1, keepdim=True)
    return cross_entropy(logits / reach.clamp(min=1e-30), labels, targets)


@contextmanager
def as_it_was_given(model: RobenchModel) -> Iterator[None]:
    """The model with what it kept before it was asked anything; afterwards it is as it is now."""
    now = FirstState.of(model.network)
    if now is not None and model.first is not None:
        model.first.restore(model.network)
    try:
        with undisturbed(model):
            yield
    finally:
        if now is not None:
            now.restore(model.network)


def joined(parts: Sequence[Slopes | None], sample_ids: Sequence[str]) -> Slopes | None:
    """What was kept of parts of some samples, as of all of them, in their order; None: a part has
    none."""
    kept: dict[str, tuple[float | None, ...]] = {}
    for part in parts:
        if part is None:
            return None
        columns = [getattr(part, name) for name in Slopes.columns()]
        kept |= dict(zip(part.samples, zip(*columns, strict=True), strict=True))
    there = [name for name in sample_ids if name in kept]
    chosen = [there[place] for place in sorted(by_key(there)[:SAMPLES])]
    figures = zip(*(kept[name] for name in chosen), strict=True)
    return Slopes(samples=tuple(chosen), **dict(zip(Slopes.columns(), figures, strict=True)))
