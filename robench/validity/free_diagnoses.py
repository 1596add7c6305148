"""What the suite's own records say of masked gradients: their flags, errors and contradictions.

They cost nothing beyond the evaluation: the doctor's severe findings and the attacks' flags are in
every record.
"""

from __future__ import annotations

from collections.abc import Sequence

from robench.formatting import fixed
from robench.records import Diagnosis, Flag, Outcome
from robench.reporting.contradictions import contradictions
from robench.results import StoredRecord
from robench.results.validations import ERRORED

TRANSFER = "transfer_beats_direct"
"""The rule that inputs made for other models break no more than the same attack on the model"""

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


def free_diagnoses(
    records: Sequence[StoredRecord], transfers: Sequence[StoredRecord] = ()
) -> list[Diagnosis]:
    """What the records of one model, data set and threat model say together.

    One diagnosis for each flag that is severe or speaks of gradients, for samples without a verdict,
    and for each rule that records break; a sound one each where there is none. ``transfers`` are
    records of inputs that the same attacks made for other models.
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
    broken = contradictions([*records, *transfers])
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
        count = len(records) + len(transfers)
        evidence = f"{count} records contradict each other in no rule"
        found.append(Diagnosis(test="consistency", outcome="sound", evidence=evidence))
    if transfers and all(item.rule != TRANSFER for item in broken):
        found.append(_of_transfers(records, transfers))
    return found


def _of_transfers(records: Sequence[StoredRecord], transfers: Sequence[StoredRecord]) -> Diagnosis:
    """Inputs that were made for other models break no more than the attack itself."""

    def left(stored: StoredRecord) -> float:
        return 100 * stored.record.count(Outcome.SURVIVED) / stored.record.n

    lowest = min(transfers, key=left)
    source = lowest.record.made_for
    assert source is not None
    own = min(left(s) for s in records if s.record.attack.identity == source.attack.identity)
    return Diagnosis(
        test=TRANSFER,
        outcome="sound",
        evidence=f"of what was made for {len(transfers)} other models that for {source.model.name} by "
        f"{source.attack.name} breaks most: it leaves {fixed(left(lowest), 1)} % of "
        f"{lowest.record.n} samples, the attack itself {fixed(own, 1)} %",
        value=left(lowest),
        threshold=own,
    )


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
