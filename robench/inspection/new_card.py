"""From a weights file to a model of the zoo: its card, with what was measured and found."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robench.datasets import Dataset
from robench.doctor import Finding, examine
from robench.errors import CardError, StoreError, UsageError
from robench.files import ensure_writable
from robench.inspection.clean_accuracy import clean_accuracy
from robench.models.cards import CARD_NAME, write_card
from robench.models.loading import load_model
from robench.models.zoo import LocatedCard
from robench.records import Examination, Provenance, parse
from robench.request import Request
from robench.request_loading import draft_requested, load_samples

__all__ = ["add_model"]

_MEASURED = 500
"""Samples on which the clean accuracy is measured."""

_EXAMINED = 200
"""Samples that the doctor is shown, as by ``robench doctor``."""


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
    here = LocatedCard(card, checkpoint)
    model = load_model(here, trust_pickle=request.trust_pickle)
    accuracy = clean_accuracy(model, samples, card.threat_model)
    few = samples.subset(min(_EXAMINED, len(samples)))
    found = examine(model, few.batch(range(len(few))), few.labels, data_classes=samples.num_classes)
    today = datetime.now(UTC).date().isoformat()
    # The shards of an index stay where they are; a single file moves in with its card.
    single = checkpoint.suffix != ".json"
    target = folder / checkpoint.name
    measured = {
        "clean_acc": round(accuracy, 2),
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
    return LocatedCard(finished, folder, path), found


def _which(samples: Dataset) -> str:
    return f"{samples.name}, {samples.split} split, sha256 {samples.fingerprint}"
