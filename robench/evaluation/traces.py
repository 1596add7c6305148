"""The tracer: what searches see at each step, on its way to a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.evaluation.active_searches import Active
from robench.evaluation.queries import Queries
from robench.evaluation.samples import SearchResult
from robench.results.traces import ROW, Rows

_BUFFERED = 2**14
"""Rows that are held before they are passed on"""


class Tracer:
    """Notes what the searches of some samples see; nothing that is searched depends on it.

    Args:
        keep: takes rows, some 16,000 at a time.
        run: which of a plan's stage runs it is.
        positions: int64 (n′,), what the samples are called in the rows.
        improvements: note a step only where the margin got smaller: how many steps an attack
            without gradients takes at once depends on the batch, and between two improvements
            nothing is new.
    """

    def __init__(
        self, keep: Callable[[Rows], None], run: int, positions: Tensor, *, improvements: bool
    ) -> None:
        self._keep = keep
        self._run = run
        self._positions = positions.numpy()
        self._improvements = improvements
        self._held: list[Rows] = []

    def note(self, active: Active[Any], queries: Queries) -> None:
        """What the last passes told of the active searches, before the best points are updated."""
        state = active.state
        losses, norms = queries.watched()
        told = state.margin < active.best_margin
        if not self._improvements:
            told = told | state.margin.isfinite() | losses.isfinite()
        rows = told.nonzero().squeeze(1)
        margins = torch.where(state.margin.isfinite(), state.margin, torch.nan)
        columns = (active.search, state.step, margins, losses, norms)
        self._hold(active.sample[rows], *(column[rows] for column in columns))

    def _hold(self, sample: Tensor, *columns: Tensor | float) -> None:
        rows = np.empty(len(sample), ROW)
        rows["run"], rows["sample"] = self._run, self._positions[sample.cpu().numpy()]
        names = ("search", "step", "margin", "loss", "gradient_norm")
        for name, column in zip(names, columns, strict=True):
            rows[name] = column.cpu().numpy() if isinstance(column, Tensor) else column
        self._held.append(rows)
        if sum(map(len, self._held)) >= _BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Pass on what is held: from here an interrupted search goes on."""
        held, self._held = self._held, []
        if held:
            self._keep(np.concatenate(held))

    def end(self, result: SearchResult) -> None:
        """The searches are over: which of them count is known."""
        everyone = np.arange(len(result.settled))
        rows = np.empty(len(everyone), ROW)
        rows["run"], rows["sample"] = self._run, self._positions[everyone]
        rows["search"], rows["step"] = result.settled.cpu().numpy(), -1
        for name in ("margin", "loss", "gradient_norm"):
            rows[name] = np.nan
        self._held.append(rows)
        self.flush()
