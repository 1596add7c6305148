"""A model's clean accuracy, and whether it is still what its card says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from robench.datasets import Dataset
from robench.errors import CardError, RobenchError
from robench.evaluation.adjudicate import Adjudicator
from robench.models.loading import load_model
from robench.models.wrapper import RobenchModel
from robench.models.zoo import LocatedCard
from robench.request import Request
from robench.request_loading import load_samples
from robench.threat_models import ThreatModel

__all__ = ["Rechecked", "clean_accuracy", "recheck"]

_TOLERATED = 2
"""Samples that may change sides between machines: logits differ in their last bits"""


@dataclass(frozen=True)
class Rechecked:
    """What became of a model that was loaded again."""

    id: str
    ok: bool
    problem: str | None = None
    accuracy: Literal["agrees", "differs", "not recorded", "no data", "not asked"] = "not asked"
    clean_acc: float | None = None
    """Measured now, in percent."""
    recorded: float | None = None
    """What the card says, in percent."""
    n: int | None = None


def clean_accuracy(model: RobenchModel, samples: Dataset, threat_model: ThreatModel) -> float:
    """Percent of the samples that the model classifies as labelled, in float32."""
    judge = Adjudicator(model, threat_model)
    correct = 0
    for rows in torch.split(torch.arange(len(samples)), judge.parts.size):
        logits = judge.logits(samples.batch(rows))
        correct += int((logits.argmax(dim=1) == samples.labels[rows]).sum())
    return 100 * correct / len(samples)


def recheck(located: LocatedCard, request: Request, *, accuracy: bool = False) -> Rechecked:
    """Load a model from its card, and measure its recorded clean accuracy again.

    The samples are those that the card's figure was measured on: as many of its data set, chosen
    in the same way. Where they cannot be had, the model is not at fault.

    Args:
        located: the card.
        request: where data sets are.
        accuracy: measure; otherwise card, hash and weights are all that is checked.
    """
    card = located.card
    try:
        model = load_model(located)
    except RobenchError as error:
        return Rechecked(located.id, False, str(error))
    if not accuracy:
        return Rechecked(located.id, True)
    measured = card.provenance.measured
    recorded, n = measured.get("clean_acc"), measured.get("n")
    if not isinstance(recorded, int | float) or not isinstance(n, int):
        return Rechecked(located.id, True, accuracy="not recorded")
    try:
        split = str(measured.get("split", "test"))
        request = replace(request, dataset=card.dataset, split=split, n=n)
        samples = load_samples(request, model.preprocessing)
    except RobenchError as error:
        return Rechecked(located.id, True, str(error), "no data", recorded=recorded, n=n)
    try:
        found = clean_accuracy(model, samples, card.threat_model)
    except RobenchError as error:
        return Rechecked(located.id, False, str(error), recorded=recorded, n=n)
    close = abs(found - recorded) * n / 100 <= _TOLERATED + 0.01
    problem = None
    if not close:
        problem = str(
            CardError(
                f"clean_acc is {found:.1f} % (n = {n}), the card says {recorded:.1f} %",
                where=located.path,
                hint="Other weights, another input range or other data than it was measured with; "
                "robench doctor says more",
            )
        )
    return Rechecked(
        located.id, close, problem, "agrees" if close else "differs", found, recorded, n
    )
