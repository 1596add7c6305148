"""The two models of a check: from stored records, or the baseline from a leaderboard's row."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robench.errors import UsageError, one_line
from robench.formatting import is_undefined
from robench.reporting.differences import Difference
from robench.reporting.leaderboard import read_leaderboard
from robench.reporting.model_results import ModelResult, collect, find_pair
from robench.results import RecordFilter, Store
from robench.statistics import unpaired_difference

_MOST_SAMPLES = 10**9


@dataclass(frozen=True)
class LeaderboardRow:
    """A baseline of which only the figures are known; accuracies in percent, NaN if absent."""

    name: str
    n: int
    robust_acc: float
    clean_acc: float


def stored_pair(
    candidate: str,
    baseline: str,
    folder: str | Path,
    wanted: RecordFilter | None = None,
    *,
    baseline_from: Path | None = None,
) -> tuple[ModelResult, ModelResult | LeaderboardRow]:
    """Candidate and baseline on the same samples under the same threat model, by names, ids, or
    the start of the weights' sha256, among the ``wanted`` records.

    The baseline may be in another results folder, or in a leaderboard CSV: ``baseline_from``.

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


def leaderboard_row(path: str | Path, model: str, candidate: ModelResult) -> LeaderboardRow:
    """A baseline from a leaderboard CSV: the row of ``model`` that fits the candidate.

    Raises:
        UsageError: the file is no leaderboard, or has no such row under the candidate's data and
            threat model, or one with figures that cannot be.
    """
    if candidate.threat_model.goal != "untargeted":
        raise UsageError(
            f"a leaderboard's row is of untargeted attacks, {candidate.group} is not",
            where=path,
            hint="Name a results folder with the baseline's records",
        )
    try:
        frame = read_leaderboard(path)
        same = frame[
            (frame["model"] == model)
            & (frame["data_sha256"] == candidate.group.fingerprint)
            & (frame["norm"] == candidate.threat_model.norm)
            & (frame["eps"] == candidate.threat_model.written)
            & (frame["seed"] == candidate.group.seed)
        ]
    except Exception as error:  # A damaged file makes the parser raise almost anything.
        raise UsageError(f"not a leaderboard: {one_line(error)}", where=path) from error
    if len(same) != 1:
        raise UsageError(
            f"{len(same)} rows for {model!r} on {candidate.group}",
            where=path,
            hint="The baseline needs one row with the candidate's data, threat model and seed",
        )
    row = same.iloc[0].to_dict()
    place = f"{path}: row of {model!r}"
    count = _figure(row, "n", 1, _MOST_SAMPLES, place)
    if not count.is_integer():  # of NaN too
        raise UsageError("n is no whole number", where=place)
    accuracies = (_figure(row, name, 0, 100, place) for name in ("robust_acc", "clean_acc"))
    return LeaderboardRow(model, int(count), *accuracies)


def _figure(row: Mapping[Any, Any], column: str, low: float, high: float, where: str) -> float:
    """A number of a row, NaN where the field is empty.

    Raises:
        UsageError: it is missing, none, or outside of [low, high].
    """
    if column not in row:
        raise UsageError(f"there is no column {column}", where=where)
    try:
        value = math.nan if is_undefined(row[column]) else float(row[column])
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{column} is {row[column]!r:.50}, no number", where=where) from error
    if value < low or value > high:
        raise UsageError(f"{column} is {value:g}, not from {low:g} to {high:g}", where=where)
    return value


def row_differences(
    candidate: ModelResult, baseline: LeaderboardRow, level: float
) -> list[Difference]:
    """The accuracies that the row has, candidate minus baseline, as if from separate samples."""
    # Imported here: SciPy's statistics takes a second to load, and most commands do without.
    from scipy.stats import fisher_exact

    found, other_n = [], baseline.n
    for quantity, verdicts, figure in (
        ("robust_acc", candidate.robust, baseline.robust_acc),
        ("clean_acc", candidate.clean_correct, baseline.clean_acc),
    ):
        if math.isnan(figure):
            continue
        hits, n = int(verdicts.sum()), len(verdicts)
        other_hits = round(figure / 100 * other_n)
        table = np.array([[hits, n - hits], [other_hits, other_n - other_hits]])
        share, other = hits / n, other_hits / other_n
        difference = Difference(
            quantity=quantity,
            better="higher",
            first=100 * share,
            second=100 * other,
            interval=unpaired_difference(hits, n, other_hits, other_n, level).scaled(100),
            p=float(fisher_exact(table).pvalue),
            p_worse=float(fisher_exact(table, alternative="less").pvalue),
            n=n,
            # As if each sample were drawn with its own partner, independent of it.
            spread=100 * math.sqrt(share * (1 - share) + other * (1 - other)),
        )
        found.append(difference)
    return found
