"""The order of each sample's searches, asked for once a sample and kept with the search."""

from typing import Any

import torch
from torch import Tensor

from robench.attacks.base import Attack
from robench.evaluation.queries import Queries
from robench.evaluation.samples import Samples, SearchResult


class SearchOrder:
    """What an attack said of the order of its searches, by sample.

    A row depends on its sample alone, so that it matters neither when nor beside whom it was asked
    for.

    Args:
        attack: whose :meth:`~robench.attacks.base.Attack.search_order` is asked.
        queries: the passes that it takes. Searches that are run again in another precision stay
            the same if these do.
    """

    def __init__(self, attack: Attack[Any], queries: Queries) -> None:
        self.attack = attack
        self.queries = queries
        self.numbers: Tensor | None = None
        """int64 (n, searches), −1 where a sample has not been asked about; None: no sample has
        been, or the attack has no order of its own. It is replaced, never changed in place."""
        self._has_none = False

    def number(
        self, samples: Samples, sample: Tensor, place: Tensor, result: SearchResult
    ) -> Tensor:
        """The number of the search that is the ``place``-th of its sample, int64 (B,).

        ``samples`` are those of ``sample``, int64 (B,), the positions among all; the passes that it
        takes are counted for these in ``result``.
        """
        if self._has_none:
            return place
        known = None if self.numbers is None else (self.numbers[sample, 0] >= 0).tolist()
        # Several searches of a sample may start at once.
        rows = {at: row for row, at in enumerate(sample.tolist()) if not (known and known[row])}
        if rows:
            first = torch.tensor(list(rows.values()), device=sample.device)
            asked = samples.at(first)
            self.queries.reset(len(first), sample.device)
            order = self.attack.search_order(
                self.queries, asked.inputs, asked.labels, asked.clean_logits
            )
            if order is None:
                self._has_none = True
                return place
            new = sample[first]
            result.count_passes(new, self.queries.forwards, self.queries.backwards)
            if self.numbers is None:
                self.numbers = order.new_full((len(result.settled), order.shape[1]), -1)
            self.numbers = self.numbers.index_copy(0, new, order)
        assert self.numbers is not None
        return self.numbers[sample, place]
