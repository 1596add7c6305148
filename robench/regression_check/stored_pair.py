"""The two models of a check, as their stored records have them."""

from __future__ import annotations

from pathlib import Path

from robench.regression_check.leaderboard_row import LeaderboardRow, leaderboard_row
from robench.reporting.model_results import ModelResult, collect, find_pair
from robench.results import RecordFilter, Store

__all__ = ["stored_pair"]


def stored_pair(
    candidate: str,
    baseline: str,
    folder: str | Path,
    wanted: RecordFilter | None = None,
    *,
    baseline_from: Path | None = None,
) -> tuple[ModelResult, ModelResult | LeaderboardRow]:
    """Candidate and baseline on the same samples under the same threat model.

    Args:
        candidate, baseline: names, ids, or the start of the weights' sha256.
        folder: the results folder.
        wanted: which records, where there are several.
        baseline_from: another results folder, or a leaderboard CSV, that has the baseline.

    Raises:
        StoreError: there is no such folder.
        UnknownNameError, UsageError: a model has no records, or too many.
    """
    own = collect(Store.existing(folder).records(), wanted)
    if baseline_from is None:
        return find_pair(own, candidate, baseline)
    if baseline_from.suffix == ".csv":
        found, _ = find_pair(own, candidate, candidate)
        return found, leaderboard_row(baseline_from, baseline, found)
    others = collect(Store.existing(baseline_from).records(), wanted)
    return find_pair(own, candidate, baseline, second_results=others)
