"""Intervals, paired tests, effect sizes and power. Plain numbers in, plain numbers out."""

from robench.statistics.effects import auc_interval, mann_whitney, rank_correlation
from robench.statistics.intervals import (
    Interval,
    mean_interval,
    missed_share_upper,
    unaudited_share_upper,
    unpaired_difference,
    wilson,
)
from robench.statistics.paired import (
    PairedCounts,
    bootstrap_mean,
    bootstrap_worst_class,
    holm,
    mcnemar,
    tango_interval,
)
from robench.statistics.power import n_for_difference, n_for_noninferiority, smallest_difference
from robench.statistics.resolution import RESOLUTION, exact, is_resolved
from robench.statistics.thresholds import shares_above

__all__ = [
    "RESOLUTION",
    "Interval",
    "PairedCounts",
    "auc_interval",
    "bootstrap_mean",
    "bootstrap_worst_class",
    "exact",
    "holm",
    "is_resolved",
    "mann_whitney",
    "mcnemar",
    "mean_interval",
    "missed_share_upper",
    "n_for_difference",
    "n_for_noninferiority",
    "rank_correlation",
    "shares_above",
    "smallest_difference",
    "tango_interval",
    "unaudited_share_upper",
    "unpaired_difference",
    "wilson",
]
