"""What a record's trace says: how searches went on, step by step, and whether any was cut short."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from robench.records import Diagnosis, Outcome
from robench.results import StoredRecord
from robench.results.traces import read_trace

Floats = npt.NDArray[np.float64]

BEST = ("best_margin", "best_loss")
"""What a search has reached by a step: the smallest margin, the largest loss."""
SHOWN = (*BEST, "gradient_norm")

_POINTS = 60
"""Of a curve, closer together where searches begin"""

_LAST, _STILL = 10, 0.05
"""A search is incomplete if its best loss rose in its last ten steps by more than 5 % of all that it rose
(Pintor et al., NeurIPS 2022)."""
_ENOUGH_STEPS = 2 * _LAST
_ENOUGH_SEARCHES = 5

INCOMPLETE, LOST, SILENT = 0.2, 0.1, 0.05
"""Largest shares of a sound model's searches that are incomplete, without gradients for half of their
steps, or at a misclassified point that is not one when it is judged (``benchmarks/results/indicators.md``)."""


@dataclass(frozen=True)
class Spread:
    """Of a figure over the searches, by step: median and quartiles, NaN before any has it."""

    median: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class StageTrace:
    """How the searches of one stage went on.

    Attributes:
        stage: its name.
        searches: how many there are.
        steps: some of its steps, rising.
        spreads: for each of :data:`SHOWN` that there is, at these steps. A search that has ended
            stays where it ended.
    """

    stage: str
    searches: int
    steps: npt.NDArray[np.int64]
    spreads: dict[str, Spread]


def stage_traces(frames: Callable[[], Iterable[pd.DataFrame]]) -> list[StageTrace]:
    """The stages of a trace, in the order in which they appear; called twice, ``frames`` give the
    trace some samples at a time (:func:`robench.results.traces.read_trace`)."""
    last: dict[str, int] = {}
    for frame in frames():
        for stage, step in (
            _first_searches(frame).groupby("stage", sort=False)["step"].max().items()
        ):
            last[str(stage)] = max(last.get(str(stage), 0), int(step))
    grids = {
        stage: np.unique(np.geomspace(1, max(step, 1), _POINTS).round().astype(np.int64))
        for stage, step in last.items()
    }
    values: dict[str, list[Floats]] = {stage: [] for stage in grids}
    for frame in frames():
        for (stage, *_), search in _searches(frame):
            values[stage].append(_at(search, grids[stage]))
    found = []
    for stage, parts in values.items():
        table = np.stack(parts)
        spreads = {}
        for place, name in enumerate(SHOWN):
            column = table[:, place]
            if not np.isnan(column).all():
                spreads[name] = _spread(column)
        found.append(StageTrace(stage, len(parts), grids[stage], spreads))
    return found


def _first_searches(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the searches that were made once more near the boundary."""
    return frame[~frame["recheck"]]


def _searches(frame: pd.DataFrame) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The searches by stage, sample, target if there is any, and number, with what they reached."""
    names = [n for n in ("stage", "sample_id", "target", "search") if n in frame.columns]
    own = _first_searches(frame)
    grouped = own.groupby(names, sort=False)
    own = own.assign(best_margin=grouped["margin"].cummin(), best_loss=grouped["loss"].cummax())
    for key, search in own.groupby(names, sort=False):
        yield tuple(map(str, key)), search


def _at(search: pd.DataFrame, steps: npt.NDArray[np.int64]) -> Floats:
    """What a search had come to at these steps: (3, steps), NaN before its first."""
    place = np.searchsorted(search["step"].to_numpy(), steps, side="right") - 1
    columns = search[list(SHOWN)].ffill().to_numpy(np.float64)
    return np.where(place >= 0, columns[place.clip(min=0)].T, np.nan)


def _spread(column: Floats) -> Spread:
    """Of (searches, steps) over the searches."""
    known = ~np.isnan(column).all(axis=0)
    quartiles = np.full((3, column.shape[1]), np.nan)
    quartiles[:, known] = np.nanpercentile(column[:, known], (25, 50, 75), axis=0)
    return Spread(median=quartiles[1], low=quartiles[0], high=quartiles[2])


def record_failures(stored: StoredRecord) -> list[Diagnosis]:
    """What a record's trace, if one was kept, says against its searches: of each stage that searches
    the model itself the indicators that it shows.

    Raises:
        StoreError: the trace cannot be read.
    """
    if stored.trace_path is None:
        return []
    spec, table = stored.record.attack, stored.table
    survivors = list(table["sample_id"][table["outcome"] == Outcome.SURVIVED.value])
    return [
        said
        for stage in spec.stages or (spec,)
        if stage.through is None and stage.output is None
        for said in attack_failures(read_trace(stored.trace_path), survivors, stage.name)
        if said.outcome == "masked"
    ]


@dataclass
class _Counts:
    """Of the searches of samples that survived."""

    searches: int = 0
    incomplete: int = 0
    with_gradients: int = 0
    lost: int = 0
    long: int = 0


def attack_failures(
    frames: Iterable[pd.DataFrame], survivors: Iterable[str], stage: str
) -> list[Diagnosis]:
    """The indicators of attack failure that a trace shows, of one stage that searches the model itself.

    Pintor et al., "Indicators of Attack Failure", NeurIPS 2022: gradients that are gone along the way,
    optimisation that was cut short, and successes that were passed over, each over the searches of the
    samples that survived, ``survivors`` by id.
    """
    alive, counts = set(survivors), _Counts()
    silent: set[str] = set()
    for frame in frames:
        own = frame[(frame["stage"] == stage) & frame["sample_id"].isin(alive)]
        silent |= set(own["sample_id"][own["margin"] < 0])
        for _, search in _searches(own) if len(own) else ():
            _count(search, counts)
    return [
        _gradients_lost(counts, stage),
        _incomplete(counts, stage),
        _silent(silent, alive, stage),
    ]


def _count(search: pd.DataFrame, counts: _Counts) -> None:
    counts.searches += 1
    norms = search["gradient_norm"].dropna()
    counts.with_gradients += bool(len(norms))
    counts.lost += bool(len(norms)) and float((norms == 0).mean()) > 0.5
    losses = search["best_loss"].dropna().to_numpy()
    if len(losses) >= _ENOUGH_STEPS:
        counts.long += 1
        rose, late = losses[-1] - losses[0], losses[-1] - losses[-1 - _LAST]
        counts.incomplete += bool(late > _STILL * rose)


def _diagnosis(
    test: str, hits: int, among: int, limit: float, what: str, asks_for: tuple[str, ...]
) -> Diagnosis:
    if among < _ENOUGH_SEARCHES:
        evidence = f"only {among} of the searches that found nothing can say"
        return Diagnosis(test=test, outcome="undefined", evidence=evidence)
    share = hits / among
    masked = share > limit
    return Diagnosis(
        test=test,
        outcome="masked" if masked else "sound",
        evidence=f"{what} for {hits} of {among} ({share:.0%}; of a sound model at most {limit:.0%})",
        value=share,
        threshold=limit,
        asks_for=asks_for if masked else (),
    )


def _gradients_lost(counts: _Counts, stage: str) -> Diagnosis:
    what = (
        f"{stage}: searches without a find whose gradient is zero at more than half of their steps,"
    )
    asks_for = ("scale-free", "bpda", "smoothed", "square-more")
    return _diagnosis("gradients_lost", counts.lost, counts.with_gradients, LOST, what, asks_for)


def _incomplete(counts: _Counts, stage: str) -> Diagnosis:
    what = (
        f"{stage}: searches without a find whose best loss rose in the last {_LAST} steps by more than "
        f"{_STILL:.0%} of all that it rose,"
    )
    asks_for = ("restarts", "square-more")
    return _diagnosis(
        "incomplete_search", counts.incomplete, counts.long, INCOMPLETE, what, asks_for
    )


def _silent(silent: set[str], alive: set[str], stage: str) -> Diagnosis:
    what = (
        f"{stage}: samples that were misclassified on the way, and not when the point was judged,"
    )
    asks_for = ("eot", "distilled", "decision")
    return _diagnosis("silent_success", len(silent), len(alive), SILENT, what, asks_for)
