"""How two models differ on the same samples, one quantity at a time.

Every difference is *first minus second*. ``p_worse`` is the one-sided p-value for "the first is
worse"; what worse means depends on the quantity's direction.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from robench.errors import UsageError
from robench.metric_catalogue import METRICS, Direction
from robench.records import Outcome
from robench.reporting.corruptions import corruption_shares, main_attack
from robench.reporting.leaderboard import attack_column
from robench.reporting.model_results import SAME_CONDITIONS, ModelResult
from robench.statistics import (
    Interval,
    PairedCounts,
    bootstrap_mean,
    bootstrap_worst_class,
    mcnemar,
    tango_interval,
)

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

RESAMPLES = 1999
_FEWEST_IN_A_CLASS = 5


@dataclass(frozen=True)
class Difference:
    """One quantity of two models. NaN where undefined."""

    quantity: str
    """An accuracy, whose figures are in percent, or a metric in its own unit."""
    better: Literal["higher", "lower", "neutral"]
    first: float
    second: float
    interval: Interval
    p: float
    """Two-sided."""
    p_worse: float
    n: int
    """Samples that went into it."""
    counts: PairedCounts | None = None
    """For accuracies."""
    spread: float = math.nan
    """Standard deviation of the per-sample differences, in the quantity's unit."""

    @property
    def loss(self) -> Interval:
        """How much worse the first is: positive where it is worse."""
        plain = self.interval
        if self.better == "lower":
            return plain
        # Subtracting from 0 keeps an exact 0 from turning into −0.
        return Interval(0 - plain.estimate, 0 - plain.high, 0 - plain.low, plain.level)


def common_attacks(
    first: ModelResult, second: ModelResult
) -> tuple[ModelResult, ModelResult, list[str]]:
    """Both models with only the attacks that both faced with the same parameters, and a sentence for
    each attack left out.

    Raises:
        UsageError: they are of different groups, or no attack remains.
    """
    if first.group != second.group:
        raise UsageError(
            f"{first.model.name} was evaluated on {first.group}, "
            f"{second.model.name} on {second.group}",
            hint=SAME_CONDITIONS,
        )
    shared, notes = [], []
    for name in sorted({*first.attacks, *second.attacks}):
        lacking = [r.model.name for r in (first, second) if name not in r.attacks]
        if lacking:
            notes.append(f"{name} is left out: there is no record of it for {lacking[0]}")
        elif first.parameters_of(name) != second.parameters_of(name):
            notes.append(f"{name} is left out: its parameters differ between the two")
        else:
            shared.append(name)
    if not shared:
        raise UsageError(
            f"{first.model.name} and {second.model.name} have no attack in common",
            hint="Run the same suite on both",
        )
    return first.restricted(shared), second.restricted(shared), notes


def targeted_name(quantity: str) -> str:
    """An accuracy under attacks that were after targets is another quantity."""
    attacked = quantity.endswith("_acc") and quantity != "clean_acc"
    return f"targeted_{quantity}" if attacked else quantity


def differences(
    first: ModelResult,
    second: ModelResult,
    level: float = 0.95,
    *,
    wanted: Collection[str] | None = None,
) -> list[Difference]:
    """Of two models of a group with the same attacks: clean, robust, every attack's and the worst
    class's accuracy, and the metrics that both have defined; or only the ``wanted`` of these. Of
    corruptions their columns stand in the attacks' place: means over each sample's images."""
    shares: list[tuple[str, Floats, Floats]] = []
    verdicts = [
        ("clean_acc", first.clean_correct, second.clean_correct),
        ("robust_acc", first.robust, second.robust),
    ]
    if first.threat_model.corrupted is not None:
        ours, theirs = (corruption_shares(r, main_attack(r)) for r in (first, second))
        shares = [(name, ours[name], theirs[name]) for name in ours if name in theirs]
    for attack in first.attacks if not shares else ():
        one, two = (result.outcome_is(attack, Outcome.SURVIVED) for result in (first, second))
        verdicts.append((attack_column(attack), one, two))
    found = [
        accuracy_difference(name, one, two, level)
        for name, one, two in verdicts
        if wanted is None or name in wanted
    ]
    found += [
        mean_difference(name, one, two, "higher", level)
        for name, one, two in shares
        if wanted is None or name in wanted
    ]
    if wanted is None or "worst_class_robust_acc" in wanted:
        found.append(worst_class_difference(first, second, level))
    if (measured := _shared_metric_attack(first, second)) is not None:
        names = [name for name in METRICS if wanted is None or name in wanted]
        changes = [metric_difference(name, first, second, measured, level) for name in names]
        found += [change for change in changes if change.interval.defined]
    return found


def accuracy_difference(
    quantity: str, first: Bools, second: Bools, level: float = 0.95
) -> Difference:
    """Of two accuracies, from aligned verdicts (n,): Tango's interval, exact McNemar tests."""
    counts = PairedCounts.of(first, second)
    share = counts.discordant / counts.n if counts.n else math.nan
    variance = share - counts.difference**2
    return Difference(
        quantity=quantity,
        better="higher",
        first=100 * float(np.mean(first)) if counts.n else math.nan,
        second=100 * float(np.mean(second)) if counts.n else math.nan,
        interval=tango_interval(counts, level).scaled(100),
        p=mcnemar(counts),
        p_worse=mcnemar(counts, "less"),
        n=counts.n,
        counts=counts,
        spread=100 * math.sqrt(max(0.0, variance)) if counts.n else math.nan,
    )


def worst_class_difference(
    first: ModelResult, second: ModelResult, level: float = 0.95, *, seed: int = 0
) -> Difference:
    """Of the two models' lowest robust accuracies over classes, each its own worst class.

    A minimum has no simple distribution: interval and p-values come from a bootstrap of the
    samples inside each class (percentiles of 1,999 resamples), and are approximate, the more so
    the fewer samples a class has. Undefined where one has fewer than 5: drawn again and again, a few
    equal outcomes look certain.
    """
    classes = [
        PairedCounts.of(first.robust[chosen], second.robust[chosen])
        for chosen in (first.labels == label for label in np.unique(first.labels))
    ]
    lowest = [
        100 * min((c.both + c.only_first) / c.n for c in classes),
        100 * min((c.both + c.only_second) / c.n for c in classes),
    ]
    few = min(c.n for c in classes) < _FEWEST_IN_A_CLASS
    estimate = math.nan if few else lowest[0] - lowest[1]
    draws = 100 * bootstrap_worst_class(classes, resamples=RESAMPLES, seed=seed)
    tail = (1 - level) / 2
    low, high = (math.nan,) * 2 if few else np.quantile(draws, [tail, 1 - tail])
    # Counting the samples themselves as one more draw keeps p above 0.
    worse = float((1 + np.sum(draws >= 0)) / (1 + RESAMPLES))
    above = float((1 + np.sum(draws <= 0)) / (1 + RESAMPLES))
    return Difference(
        quantity="worst_class_robust_acc",
        better="higher",
        first=lowest[0],
        second=lowest[1],
        interval=Interval(estimate, float(low), float(high), level),
        p=math.nan if few else min(1.0, 2 * min(worse, above)),
        p_worse=math.nan if few else worse,
        n=first.n,
        spread=float(draws.std()) * math.sqrt(first.n),
    )


def metric_difference(
    name: str, first: ModelResult, second: ModelResult, attack: str, level: float = 0.95
) -> Difference:
    """Of the means of a per-sample metric, as :func:`mean_difference`."""
    known = METRICS.get(name)
    better = "neutral" if known is None else known.direction
    return mean_difference(
        name, first.column(attack, name), second.column(attack, name), better, level
    )


def mean_difference(
    quantity: str, one: Floats, two: Floats, better: Direction, level: float = 0.95
) -> Difference:
    """Of the means of aligned per-sample values (n,), over samples where both are defined.

    BCa bootstrap interval of the mean difference, paired t-tests.
    """
    both = ~np.isnan(one) & ~np.isnan(two)
    one, two = one[both], two[both]
    change = one - two
    p = less = greater = math.nan
    if len(change) > 1 and np.ptp(change) == 0:
        # Equal everywhere: no variance to test against, no evidence either.
        p = less = greater = 1.0
    elif len(change) > 1:
        # Imported here: SciPy's statistics takes a second to load, and most commands do without.
        from scipy.stats import ttest_1samp

        p = float(ttest_1samp(change, 0).pvalue)
        less = float(ttest_1samp(change, 0, alternative="less").pvalue)
        greater = 1 - less
    return Difference(
        quantity=quantity,
        better=better,
        first=float(one.mean()) if len(one) else math.nan,
        second=float(two.mean()) if len(two) else math.nan,
        interval=bootstrap_mean(change, level),
        p=p,
        p_worse={"higher": less, "lower": greater, "neutral": math.nan}[better],
        n=len(change),
        spread=float(change.std(ddof=1)) if len(change) > 1 else math.nan,
    )


def _shared_metric_attack(first: ModelResult, second: ModelResult) -> str | None:
    """The attack on which both have metrics: the declared one if possible; None: there is none."""
    with_metrics = second.attacks_with_metrics
    shared = [name for name in first.attacks_with_metrics if name in with_metrics]
    wanted = first.attention_attack
    return wanted if wanted in shared else next(iter(shared), None)
