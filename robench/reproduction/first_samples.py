"""The first of a claim's samples, for who attacks fewer than were claimed of.

Fewer samples of a data set lie inside more of it, and what an attack finds of one depends on no other.
So the verdicts on the first 200 of 500 are to be those that were claimed of the very samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from robench.errors import UsageError
from robench.evaluation.parts import needs_all_samples
from robench.evaluation.prepared_model import ONE_AT_A_TIME
from robench.reporting.model_results import GroupKey, ModelResult
from robench.request import Request
from robench.request_loading import load_samples


@dataclass(frozen=True)
class FirstSamples:
    """The ``ids`` of some of a claim's samples, and the ``group`` of results on just these."""

    ids: frozenset[str]
    group: GroupKey


def first_samples(claim: ModelResult, request: Request, n: int) -> FirstSamples:
    """The first ``n`` of a claim's samples. They are read, and nothing is run.

    Args:
        claim: of more samples.
        request: for all of its samples.
        n: how many.

    Raises:
        UsageError: a verdict on one of them depends on others; or the samples here are not those that
            were claimed of.
        RobenchError: as :func:`robench.request_loading.load_samples`.
    """
    for stored in claim.attacks.values():
        why = needs_all_samples(stored.record.attack, claim.threat_model)
        if unlike := ONE_AT_A_TIME.intersection(flag.name for flag in stored.record.flags):
            said = min(unlike).replace("_", " ")
            why = f"the model is {said}: what a sample meets depends on those before it"
        if why is not None:
            raise UsageError(f"{n} of {claim.group.n} samples say nothing, as {why}")
    samples = load_samples(request, claim.dataset.preprocessing)
    if samples.fingerprint != claim.group.fingerprint:
        raise UsageError(f"{claim.dataset.name} here has other samples than were claimed of")
    some = samples.subset(n)
    group = GroupKey(**vars(claim.group) | {"n": n, "fingerprint": some.fingerprint})
    return FirstSamples(frozenset(some.sample_ids), group)
