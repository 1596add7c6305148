"""How often the regression gate is right, on simulated pairs of models.

Every row is one true situation at one n; in each, thousands of pairs of models are drawn and put
through ``robench.regression_check.check`` with its default policy but for what the row says.
Run by hand::

    python benchmarks/gate_simulation.py --pairs 2000 --out benchmarks/results/gate_simulation.md
"""

from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy
from scipy import stats

from robench.records import (
    AttackSpec,
    Cost,
    DatasetSpec,
    Environment,
    EvaluationRecord,
    ModelSummary,
    Outcome,
    SampleOutcome,
    canonical_hash,
)
from robench.regression_check import Policy, Verdict, check
from robench.reporting.model_results import ModelResult, collect
from robench.results import StoredRecord
from robench.statistics import PairedCounts, mcnemar, tango_interval
from robench.threat_models import ThreatModel

CLASSES = 10
CLEAN, ROBUST = 0.98, 0.75
OUTCOMES = np.array([Outcome.CLEAN_ERROR.value, Outcome.BROKEN.value, Outcome.SURVIVED.value])


@dataclass(frozen=True)
class Situation:
    """The truth: how the candidate differs from the baseline.

    ``loss`` is that of robust accuracy; ``discordant`` the share of samples on which exactly one
    of the two is robust.
    """

    n: int
    loss: float
    discordant: float
    margin: float = 1.0
    only_robust: bool = True
    """Only this criterion; otherwise all."""


class Models:
    """Makes model results from verdicts, cheaply: only the outcome columns change."""

    def __init__(self, n: int) -> None:
        self.labels = np.arange(n) % CLASSES
        samples = [
            SampleOutcome(
                sample_id=f"{i:06d}",
                label=int(label),
                outcome=Outcome.SURVIVED,
                clean_prediction=int(label),
                clean_margin=1.0,
            )
            for i, label in enumerate(self.labels)
        ]
        threat = ThreatModel.of("Linf", "8/255")
        digest = canonical_hash("simulated")
        record = EvaluationRecord(
            key=digest,
            model=ModelSummary(
                id="simulated",
                name="simulated",
                dataset="simulated",
                defense="none",
                architecture="none",
                parameters=0,
                threat_model=threat,
                weights_sha256=digest,
                fingerprint=digest,
            ),
            dataset=DatasetSpec(
                name="simulated", split="test", fingerprint=digest, n=n, num_classes=CLASSES
            ),
            threat_model=threat,
            attack=AttackSpec(name="attack", attack="simulated"),
            seed=0,
            counts={Outcome.SURVIVED: n},
            cost=Cost(forwards=0, backwards=0, seconds=0.0),
            environment=Environment(
                device="cpu", device_name="simulated", precision="float32", batch_size=1
            ),
            created="2026-01-01T00:00:00Z",
        )
        self._stored = StoredRecord.of(record, samples)

    def result(self, clean: np.ndarray, robust: np.ndarray) -> ModelResult:
        codes = np.where(~clean, 0, np.where(robust, 2, 1))
        predictions = np.where(clean, self.labels, (self.labels + 1) % CLASSES)
        table = self._stored.arrow
        for name, values in (("outcome", OUTCOMES[codes]), ("clean_prediction", predictions)):
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values))
        (result,) = collect([StoredRecord(self._stored.record, table)])
        return result


def draw(
    rng: np.random.Generator, situation: Situation
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Clean and robust verdicts of baseline and candidate, shape (n,) each."""
    lost = (situation.discordant + situation.loss) / 2
    gained = (situation.discordant - situation.loss) / 2
    both = ROBUST - lost
    fate = rng.choice(4, situation.n, p=[both, lost, gained, 1 - both - lost - gained])
    base, candidate = fate <= 1, (fate == 0) | (fate == 2)
    # A robust sample is correct; of the others, so many that the clean accuracy comes out.
    share = (CLEAN - ROBUST) / (1 - ROBUST)
    luck, other_luck = rng.random((2, situation.n))
    # The two agree on most clean verdicts, as trained networks do.
    other_luck = np.where(rng.random(situation.n) < 0.8, luck, other_luck)
    return base | (luck < share), base, candidate | (other_luck < share), candidate


def simulate(situation: Situation, pairs: int, seed: int) -> Counter[Verdict]:
    rng = np.random.default_rng([seed, situation.n, round(1e6 * situation.discordant)])
    models = Models(situation.n)
    policy = Policy().with_margin(situation.margin)
    if situation.only_robust:
        off = {name: c.model_copy(update={"enabled": False}) for name, c in policy.criteria.items()}
        policy = policy.model_copy(update={**off, "robust_acc": policy.robust_acc})
    answers: Counter[Verdict] = Counter()
    for _ in range(pairs):
        base_clean, base, clean, robust = draw(rng, situation)
        candidate = models.result(clean, robust)
        answers[check(candidate, models.result(base_clean, base), policy).verdict] += 1
    return answers


def expected(situation: Situation, alpha: float = 0.05) -> tuple[float, float]:
    """Exact chances of "not worse" and of a one-sided rejection, robust accuracy alone.

    Summed over all outcomes of the discordant samples, with the same tests as the gate's.
    """
    n = situation.n
    lost = (situation.discordant + situation.loss) / 2
    gained = (situation.discordant - situation.loss) / 2
    passes = fails = 0.0
    spread = 6 * np.sqrt(n * max(lost, gained)) + 6
    ranges = [
        range(max(0, int(n * p - spread)), min(n, int(n * p + spread)) + 1) for p in (lost, gained)
    ]
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    for c in ranges[0]:
        for b in ranges[1]:
            rest = n - b - c
            if rest < 0 or (c and not lost) or (b and not gained):
                continue
            log_p = log_factorial[n] - log_factorial[b] - log_factorial[c] - log_factorial[rest]
            log_p += c * np.log(lost or 1) + b * np.log(gained or 1)
            log_p += rest * np.log(1 - lost - gained)
            p = float(np.exp(log_p))
            if p < 1e-9:
                continue
            counts = PairedCounts(rest, b, c, 0)
            if -100 * tango_interval(counts, 1 - 2 * alpha).low < situation.margin:
                passes += p
            elif mcnemar(counts, "less") < alpha:
                fails += p
    return passes, fails


def situations() -> list[tuple[str, Situation]]:
    rows = []
    for n in (500, 2000):
        for discordant in (0.02, 0.06):
            rows.append(("no difference", Situation(n, 0.0, discordant)))
            rows.append(("loss of the margin", Situation(n, 0.01, discordant)))
            if discordant >= 0.03:
                rows.append(("loss of 3 points", Situation(n, 0.03, discordant)))
    rows.append(("loss of 3 points", Situation(500, 0.03, 0.03)))
    rows.append(("no difference, all criteria", Situation(500, 0.0, 0.06, only_robust=False)))
    rows.append(("loss of 3 points, all criteria", Situation(500, 0.03, 0.06, only_robust=False)))
    return rows


def table(pairs: int, seed: int) -> str:
    lines = [
        "| truth | n | discordant % | margin | not worse % | worse % | cannot tell % | "
        "exact: not worse % | exact: worse % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, situation in situations():
        answers = simulate(situation, pairs, seed)
        shares = [
            100 * answers[v] / pairs
            for v in (Verdict.NOT_WORSE, Verdict.WORSE, Verdict.CANNOT_TELL)
        ]
        exact: tuple[str, ...] = ("–", "–")
        if situation.only_robust:
            exact = tuple(f"{100 * p:.1f}" for p in expected(situation))
        lines.append(
            f"| {name} | {situation.n} | {100 * situation.discordant:g} | {situation.margin:g} | "
            + " | ".join(f"{share:.1f}" for share in shares)
            + f" | {exact[0]} | {exact[1]} |"
        )
    return "\n".join(lines)


def exact_power(n: int, difference: float, discordant: float, alpha: float = 0.05) -> float:
    """Power of the exact two-sided McNemar test, by summing over all numbers of discordant pairs."""
    better = (discordant + difference) / (2 * discordant)
    counts = np.arange(n + 1)
    weights = stats.binom.pmf(counts, n, discordant)
    total = 0.0
    for m in counts[weights > 1e-12]:
        # The largest k with 2·P(X ≤ k | ½) ≤ α: the test rejects for ≤ k and ≥ m − k.
        k = int(stats.binom.ppf(alpha / 2, m, 0.5))
        while k >= 0 and 2 * stats.binom.cdf(k, m, 0.5) > alpha:
            k -= 1
        if k >= 0:
            reject = stats.binom.cdf(k, m, better) + stats.binom.sf(m - k - 1, m, better)
            total += float(weights[m] * reject)
    return total


def mcnemar_table(pairs: int, seed: int) -> str:
    lines = [
        "| n | true difference | discordant % | simulated power % | exact power % |",
        "|---:|---:|---:|---:|---:|",
    ]
    rng = np.random.default_rng(seed)
    for n, difference, discordant in (
        (500, 0.0, 0.1),
        (500, 0.03, 0.06),
        (500, 0.03, 0.1),
        (500, 0.05, 0.1),
        (2000, 0.0, 0.1),
        (2000, 0.02, 0.1),
    ):
        plus, minus = (discordant + difference) / 2, (discordant - difference) / 2
        drawn = rng.multinomial(n, [plus, minus, 1 - discordant], size=pairs)
        rejected = np.mean([mcnemar(PairedCounts(r, b, c, 0)) <= 0.05 for b, c, r in drawn])
        exact = exact_power(n, difference, discordant)
        lines.append(
            f"| {n} | {100 * difference:g} | {100 * discordant:g} | {100 * rejected:.1f} "
            f"| {100 * exact:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    error = 100 * np.sqrt(0.05 * 0.95 / options.pairs)
    text = "\n".join(
        [
            "# The gate on simulated pairs",
            "",
            f"{options.pairs} pairs a row, seed {options.seed}; the standard error of a share of "
            f"5 % is {error:.1f} points. α = 0.05. Baseline {100 * ROBUST:g} % robust, "
            f"{100 * CLEAN:g} % clean, {CLASSES} classes.",
            "",
            "A false alarm is “worse” where there is no difference, a false pass “not worse” "
            "where the loss is the margin: both must stay at 5 % or below. “Worse” where there is "
            "a loss is right, even where it is a tolerable one that this n cannot tell from more. "
            "“Exact” sums the same tests over all outcomes.",
            "",
            table(options.pairs, options.seed),
            "",
            "## McNemar's exact test",
            "",
            "Two-sided, α = 0.05; a difference of 0 is the false alarm rate.",
            "",
            mcnemar_table(options.pairs, options.seed),
            "",
            f"Python {platform.python_version()}, NumPy {np.__version__}, "
            f"SciPy {scipy.__version__}.",
            "",
        ]
    )
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
