"""Models of the zoo: a weights file becomes one, and one is measured again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from robench.datasets import Dataset
from robench.doctor import Finding, examine
from robench.errors import CardError, RobenchError, StoreError, UsageError
from robench.evaluation.adjudicate import Adjudicator
from robench.files import ensure_writable
from robench.formatting import fixed, rounded
from robench.models.cards import write_card
from robench.models.loading import load_model
from robench.models.wrapper import RobenchModel
from robench.models.zoo import LocatedCard
from robench.models.zoo_folders import CARD_NAME
from robench.records import Examination, Provenance, parse
from robench.request import Request
from robench.request_loading import draft_requested, load_samples
from robench.threat_models import ThreatModel
from robench.trust import trust

_MEASURED = 500
"""Samples on which the clean accuracy is measured."""

_EXAMINED = 200
"""Samples that the doctor is shown, as by ``robench doctor``."""

_TOLERATED = 2
"""Samples that may change sides between machines: logits differ in their last bits"""


def add_model(
    request: Request,
    zoo: Path,
    *,
    name: str | None = None,
    defense: str = "unknown",
    provenance: Mapping[str, Any] | None = None,
) -> tuple[LocatedCard, list[Finding]]:
    """Draft a card, load the model, measure and examine it, and write its folder.

    Nothing is written unless the model loads and classifies. What the doctor finds is written
    into the card and stops nothing. The card comes last: without it the folder is no model.

    Args:
        request: one weights file with its architecture, the data that it classifies, and what it
            is evaluated under.
        zoo: the folder that gets the model's folder.
        name: the card's; None: the file's.
        defense: the recipe that it was trained with.
        provenance: fields of :class:`robench.records.Provenance`.

    Returns:
        The card, which has the measured accuracy, and what the doctor found.

    Raises:
        UsageError: there is a model of this id already.
        RobenchError: weights, architecture, data or provenance do not fit; the folder cannot be
            written.
    """
    ensure_writable(zoo, "--zoo")
    (checkpoint,) = (Path(str(model)) for model in request.models)
    samples = load_samples(replace(request, at_most=_MEASURED))
    card = draft_requested(request, checkpoint, samples, name=name, defense=defense)
    origin = parse(Provenance, dict(provenance or {}), CardError, where=checkpoint)
    folder = zoo / card.id
    if (folder / CARD_NAME).exists():
        raise UsageError(
            "there is a model of this id already", where=folder, hint="Choose another --name"
        )
    here = LocatedCard(card, checkpoint, own=True)
    model = load_model(here, trust_pickle=request.trust_pickle)
    accuracy = clean_accuracy(model, samples, card.threat_model)
    few = samples.subset(min(_EXAMINED, len(samples)))
    found = examine(model, few.batch(range(len(few))), few.labels, data_classes=samples.num_classes)
    today = datetime.now(UTC).date().isoformat()
    # The shards of an index stay where they are; a single file moves in with its card.
    single = checkpoint.suffix != ".json"
    target = folder / checkpoint.name
    measured = {
        "clean_acc": rounded(accuracy, 2),
        "n": len(samples),
        "split": samples.split,
        "data": _which(samples),
        "date": today,
    }
    examination = Examination(
        n=len(few),
        data=_which(few),
        date=today,
        findings=tuple(finding.flag() for finding in found),
    )
    finished = card.model_copy(
        update={
            "weights": card.weights.model_copy(update={"path": target.name} if single else {}),
            "provenance": origin.model_copy(
                update={"measured": measured, "examination": examination}
            ),
        }
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if single:
            shutil.copyfile(checkpoint, target)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise StoreError(f"cannot be written: {error.strerror}", where=target) from error
    path = write_card(finished, folder / CARD_NAME)
    if finished.architecture.names_code:
        trust(path)  # whoever adds it has just named the code
    return LocatedCard(finished, path), found


def _which(samples: Dataset) -> str:
    return f"{samples.name}, {samples.split} split, sha256 {samples.fingerprint}"


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
                f"clean_acc is {fixed(found, 2)} % (n = {n}), the card says {fixed(recorded, 2)} %",
                where=located.path,
                hint="Other weights, another input range or other data than it was measured with; "
                "robench doctor says more",
            )
        )
    return Rechecked(
        located.id, close, problem, "agrees" if close else "differs", found, recorded, n
    )
