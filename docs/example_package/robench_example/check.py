"""Models that are sure of nearly everything."""

from __future__ import annotations

from collections.abc import Iterator

from robench.doctor import Check, Finding
from robench.doctor.subject import Subject


def confidence(subject: Subject) -> Iterator[Finding]:
    """A note where half of the samples are predicted with more than 99 %."""
    sure = int((subject.logits.softmax(dim=1).amax(dim=1) > 0.99).sum())
    if 2 * sure > len(subject.labels):
        yield Finding(
            name="overconfident",
            severity="note",
            evidence=f"{sure} of {len(subject.labels)} samples are predicted with more than 99 %",
            mend="Do not read the outputs as probabilities",
            count=sure,
        )


CONFIDENCE = Check(confidence, samples=64, brief=16)
