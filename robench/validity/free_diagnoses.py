"""What the suite's own records say of masked gradients: their flags, errors and contradictions.

They cost nothing beyond the evaluation: the doctor's severe findings and the attacks' flags are in
every record.
"""

from __future__ import annotations

from collections.abc import Sequence

from robench.records import Diagnosis, Flag, Outcome
from robench.reporting.contradictions import contradictions
from robench.results import StoredRecord
from robench.results.validations import ERRORED

ASKS: dict[str, tuple[str, ...]] = {
    "no_gradients": ("bpda", "distilled", "square-more"),
    "nan_gradients": ("bpda", "smoothed", "square-more"),
    "nonfinite_gradients": ("bpda", "smoothed", "square-more"),
    "flat_margin": ("bpda", "smoothed", "square-more"),
    "gradient_mismatch": ("bpda", "smoothed", "square-more"),
    "zero_gradients": ("scale-free", "bpda", "smoothed", "square-more"),
    "vanishing_gradients": ("scale-free",),
    "coarse_margins": ("scale-free",),
    "softmax_outputs": ("scale-free",),
    "sigmoid_outputs": ("scale-free",),
    "randomised": ("eot",),
    "dynamic": ("distilled", "square-more"),
    "square_lowers_accuracy": ("bpda", "smoothed", "transfer", "square-more"),
}
"""What is tried where a flag speaks of gradients; against another severe flag there is nothing."""

_BEARABLE = {"randomised"}
"""Flags that are severe for a number of the usual suites, and no more once their countermeasure ran"""


def free_diagnoses(records: Sequence[StoredRecord]) -> list[Diagnosis]:
    """What the records of one model, data set and threat model say together.

    One diagnosis for each flag that is severe or speaks of gradients, for samples without a verdict,
    and for each rule that records break; a sound one each where there is none.
    """
    flags: dict[str, Flag] = {}
    for stored in records:
        for flag in stored.record.flags:
            told = flags.get(flag.name)
            if told is None or (flag.count or 0) > (told.count or 0):
                flags[flag.name] = flag
    found = [_of_flag(flag) for _, flag in sorted(flags.items()) if _tells(flag)]
    if not found:
        kinds = ", ".join(sorted(flags)) or "none"
        evidence = f"no flag of {len(records)} records speaks of masked gradients (flags: {kinds})"
        found = [Diagnosis(test="flags", outcome="sound", evidence=evidence)]
    found.append(_errors(records))
    broken = contradictions(records)
    found += [
        Diagnosis(
            test=item.rule,
            outcome="masked",
            evidence=item.evidence,
            value=item.points,
            asks_for=item.asks_for,
        )
        for item in broken
    ]
    if not broken:
        evidence = f"{len(records)} records contradict each other in no rule"
        found.append(Diagnosis(test="consistency", outcome="sound", evidence=evidence))
    return found


def _tells(flag: Flag) -> bool:
    if flag.name == ERRORED:  # counted from the samples, those that fail unattacked too
        return False
    return flag.severity == "severe" or (flag.name in ASKS and flag.severity != "note")


def _of_flag(flag: Flag) -> Diagnosis:
    return Diagnosis(
        test=flag.name,
        outcome="masked",
        evidence=flag.evidence,
        value=None if flag.count is None else float(flag.count),
        asks_for=ASKS.get(flag.name, ()),
        severe=flag.severity == "severe" and flag.name not in _BEARABLE,
    )


def _errors(records: Sequence[StoredRecord]) -> Diagnosis:
    """Samples on which the model failed: nobody knows whether they are robust."""
    worst = max(records, key=lambda stored: stored.record.count(Outcome.ERRORED)).record
    count = worst.count(Outcome.ERRORED)
    return Diagnosis(
        test=ERRORED,
        outcome="masked" if count else "sound",
        evidence=f"{count} of {worst.n} samples errored under {worst.attack.name}",
        value=float(count),
        threshold=0.0,
        severe=bool(count),
    )
