"""What searches are run on, and what is known of each sample as they go on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from robench.attacks.base import Others
from robench.evaluation.adjudicate import Verdicts
from robench.geometry import expand


@dataclass
class Samples:
    """What an attack is run on. The first axis of every tensor is the sample."""

    inputs: Tensor
    """float32 (n, C, H, W) in [0, 1]"""
    labels: Tensor
    """int64 (n,): the classes that the goal is about, labels to leave or targets to reach"""
    clean_logits: Tensor
    """float32 (n, K), of the output under attack"""
    keys: Tensor
    """int64 (n,), :func:`robench.seeding.sample_keys`"""
    others: Others | None = None
    """For attacks that start from other samples; the same whichever samples these are"""

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor) -> Samples:
        """The given samples, int64 (n′,) or bool (n,)."""
        return replace(
            self,
            inputs=self.inputs[rows],
            labels=self.labels[rows],
            clean_logits=self.clean_logits[rows],
            keys=self.keys[rows],
        )


@dataclass
class SearchResult:
    """What the searches of an attack found, by sample; by search where there is a second axis.

    Tensors are replaced, never changed in place: what a snapshot refers to stays as it was.
    """

    adv_inputs: Tensor
    """(n, C, H, W): the adversarial input, for survivors the point of the smallest margin; the
    clean input where there is neither"""
    prediction: Tensor
    """int64 (n,): the verdict on ``adv_inputs``, as it was judged when it was kept; −1 where there
    is no input to judge"""
    margin: Tensor
    """float32 (n,): its margin by that verdict, NaN where there is none"""
    size: Tensor
    """float32 (n,): its perturbation's norm, NaN where there is none"""
    settled: Tensor
    """int64 (n,): the first search that settled the sample, by a find or by a failure; where none
    did, the number of searches"""
    closest_margin: Tensor
    """(n,): the smallest margin that a search saw inside the ball, of survivors"""
    closest_search: Tensor
    """int64 (n,): whose it is; before any search has ended, the number of searches"""
    found_size: Tensor
    """(n,): for minimum-norm attacks the smallest perturbation that the original model is fooled by,
    +inf where there is none; NaN elsewhere"""
    forwards: Tensor
    """int64 (n,)"""
    backwards: Tensor
    """int64 (n,)"""
    search_margins: Tensor
    """(n, searches): the smallest margin of each search that ran to its end, at the ball's border
    estimated where the search was outside; +inf for others"""
    zero_gradient: Tensor
    """bool (n, searches): the first gradient was zero everywhere"""
    nonfinite: Tensor
    """bool (n, searches): a gradient held NaN or infinity"""
    errors: dict[int, str] = field(default_factory=dict)
    """Message by sample, where the model failed"""
    shared_forwards: int = 0
    """Passes of attacks on whole batches, which no single sample can be charged with"""
    shared_backwards: int = 0

    @classmethod
    def nothing_yet(cls, samples: Samples, searches: int) -> SearchResult:
        """Before the first of so many searches a sample."""
        count, device = len(samples), samples.inputs.device
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        nan = torch.full((count,), torch.nan, device=device)
        no = torch.zeros(count, searches, dtype=torch.bool, device=device)
        return cls(
            adv_inputs=samples.inputs,
            prediction=zeros - 1,
            margin=nan,
            size=nan,
            settled=zeros + searches,
            closest_margin=torch.full((count,), torch.inf, device=device),
            closest_search=zeros + searches,
            found_size=nan,
            forwards=zeros,
            backwards=zeros,
            search_margins=torch.full((count, searches), torch.inf, device=device),
            zero_gradient=no,
            nonfinite=no,
        )

    @property
    def searches(self) -> int:
        """Searches of each sample."""
        return self.search_margins.shape[1]

    @property
    def errored(self) -> Tensor:
        """bool (n,): the model failed."""
        errored = torch.zeros_like(self.settled, dtype=torch.bool)
        if self.errors:
            errored[list(self.errors)] = True
        return errored

    @property
    def broken(self) -> Tensor:
        """bool (n,)"""
        return (self.settled < self.searches) & ~self.errored

    @property
    def search(self) -> Tensor:
        """int64 (n,): the search that broke the sample, −1: none."""
        return torch.where(self.broken, self.settled, -1)

    @property
    def ran(self) -> Tensor:
        """bool (n, searches): those up to the one that settled its sample.

        Later ones may have run beside them; that depends on the batch, so they count for nothing.
        """
        numbers = torch.arange(self.searches, device=self.settled.device)
        return numbers <= self.settled[:, None]

    def keep(self, rows: Tensor, points: Tensor, verdicts: Verdicts) -> None:
        """Take points (k, C, H, W) with the verdicts on them for ``rows``, int64 (k,)."""
        self.adv_inputs = self.adv_inputs.index_copy(0, rows, points)
        self.prediction = self.prediction.index_copy(0, rows, verdicts.prediction)
        self.margin = self.margin.index_copy(0, rows, verdicts.margin)
        self.size = self.size.index_copy(0, rows, verdicts.size)

    def forget(self, rows: Tensor, inputs: Tensor) -> None:
        """There is nothing to show for ``rows``, bool (n,): of ``inputs`` (n, …), the clean ones."""
        self.adv_inputs = torch.where(expand(rows, inputs), inputs, self.adv_inputs)
        self.prediction = torch.where(rows, -1, self.prediction)
        self.margin = torch.where(rows, torch.nan, self.margin)
        self.size = torch.where(rows, torch.nan, self.size)
        self.closest_margin = torch.where(rows, torch.inf, self.closest_margin)

    def count_passes(
        self, sample: Tensor, forwards: Tensor, backwards: Tensor | None = None
    ) -> None:
        """Add passes (B,) to the samples (B,) that spent them."""
        self.forwards = self.forwards.index_add(0, sample, forwards)
        if backwards is not None:
            self.backwards = self.backwards.index_add(0, sample, backwards)

    def fail(self, index: int, search: int, message: str) -> None:
        """A failure settles a sample as a find does: only earlier searches go on.

        Whether those run before or beside the failing one depends on the batch, and must not
        change the outcome.
        """
        if search < int(self.settled[index]):
            place = torch.tensor([index], device=self.settled.device)
            self.settled = self.settled.index_fill(0, place, search)
            self.errors = {**self.errors, index: message}

    def keep_finds(
        self, sample: Tensor, search: Tensor, points: Tensor, verdicts: Verdicts
    ) -> None:
        """Of each sample, the find of the first search so far; (sample, search) is there once."""
        before = self.settled
        self.settled = before.scatter_reduce(0, sample, search, "amin")
        first = (search == self.settled[sample]) & (search < before[sample])
        winners = sample[first]
        self.keep(winners, points[first], verdicts.at(first))
        if self.errors:
            found = set(winners.tolist())
            self.errors = {i: text for i, text in self.errors.items() if i not in found}

    def keep_closest(self, sample: Tensor, search: Tensor, margins: Tensor, points: Tensor) -> None:
        """The smallest margin of each sample, of equals the first search's; not judged yet."""
        before = self.closest_margin
        closest = before.scatter_reduce(0, sample, margins, "amin")
        # A sample whose margin got smaller forgets the search that had the larger one.
        searches = torch.where(closest < before, self.searches, self.closest_search)
        equal = margins == closest[sample]
        searches = searches.scatter_reduce(0, sample[equal], search[equal], "amin")
        best = equal & (search == searches[sample])
        best = best & ((closest < before) | (searches < self.closest_search))[sample]
        self.closest_margin, self.closest_search = closest, searches
        self.adv_inputs = self.adv_inputs.index_copy(0, sample[best], points[best])
