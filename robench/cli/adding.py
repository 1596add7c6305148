"""``robench zoo add``: from a weights file to a model of the zoo."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from robench.datasets import Dataset, load_dataset
from robench.doctor import Finding, examine
from robench.errors import CardError, StoreError, UsageError
from robench.files import ensure_writable
from robench.inspection.clean_accuracy import clean_accuracy
from robench.models.cards import CARD_NAME, write_card
from robench.models.drafting import draft_card
from robench.models.loading import load_model
from robench.models.wrapper import RobenchModel
from robench.models.zoo import LocatedCard
from robench.records import (
    ArchitectureSpec,
    Examination,
    InputSpec,
    ModelCard,
    Provenance,
    validation_problems,
)
from robench.threat_models import ThreatModel

__all__ = ["Added", "Answers", "add_model"]

_MEASURED = 500
"""Samples on which the clean accuracy is measured."""

_EXAMINED = 200
"""Samples that the doctor is shown, as by ``robench doctor``."""


@dataclass(frozen=True)
class Answers:
    """What a weights file does not say itself."""

    checkpoint: Path
    architecture: ArchitectureSpec
    threat_model: ThreatModel
    dataset: str
    zoo: Path
    name: str | None = None
    defense: str = "unknown"
    split: str = "test"
    data: str | Path | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    input: InputSpec | Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    trust_pickle: bool = False


@dataclass(frozen=True)
class Added:
    """A card that was written, the clean accuracy in percent, and what the doctor found."""

    card: ModelCard
    path: Path
    clean_acc: float
    n: int
    examined: int
    """Samples that the doctor was shown."""
    findings: Sequence[Finding]


def add_model(answers: Answers) -> Added:
    """Draft a card, load the model, measure and examine it, and write its folder.

    Nothing is written unless the model loads and classifies. What the doctor finds is written
    into the card and stops nothing. The card comes last: without it the folder is no model.

    Raises:
        UsageError: there is a model of this id already.
        RobenchError: weights, architecture, data or answers do not fit; the folder cannot be
            written.
    """
    ensure_writable(answers.zoo, "--zoo")
    whole = load_dataset(
        answers.dataset,
        split=answers.split,
        root=answers.data,
        **dict(answers.data_options),
    )
    samples = whole.subset(min(_MEASURED, len(whole)))
    card = _draft(answers, samples)
    folder = answers.zoo / card.id
    if (folder / CARD_NAME).exists():
        raise UsageError(
            "there is a model of this id already", where=folder, hint="Choose another --name"
        )
    here = LocatedCard(card, answers.checkpoint.parent, answers.checkpoint)
    model = load_model(here, trust_pickle=answers.trust_pickle)
    accuracy = clean_accuracy(model, samples, answers.threat_model)
    found, examination = _examine(model, samples)
    # The shards of an index stay where they are; a single file moves in with its card.
    single = answers.checkpoint.suffix != ".json"
    target = folder / answers.checkpoint.name
    measured = {
        "clean_acc": round(accuracy, 2),
        "n": len(samples),
        "split": samples.split,
        "data": _which(samples),
        "date": _today(),
    }
    finished = card.model_copy(
        update={
            "weights": card.weights.model_copy(update={"path": target.name} if single else {}),
            "provenance": card.provenance.model_copy(
                update={"measured": measured, "examination": examination}
            ),
        }
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if single:
            shutil.copyfile(answers.checkpoint, target)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise StoreError(f"cannot be written: {error.strerror}", where=target) from error
    path = write_card(finished, folder / CARD_NAME)
    return Added(finished, path, accuracy, len(samples), examination.n, found)


def _draft(answers: Answers, samples: Dataset) -> ModelCard:
    try:
        expected = InputSpec.model_validate(
            {"channels": samples.input_shape[0], **dict(answers.input)}
        )
        provenance = Provenance.model_validate(dict(answers.provenance))
    except ValidationError as error:
        raise CardError(validation_problems(error), where=answers.checkpoint) from error
    card = draft_card(
        answers.checkpoint,
        answers.architecture,
        num_classes=samples.num_classes,
        dataset=samples.name,
        threat_model=answers.threat_model,
        name=answers.name,
        defense=answers.defense,
        input=expected,
        preprocessing=samples.preprocessing,
        trust_pickle=answers.trust_pickle,
    )
    return card.model_copy(update={"provenance": provenance})


def _examine(model: RobenchModel, samples: Dataset) -> tuple[list[Finding], Examination]:
    few = samples.subset(min(_EXAMINED, len(samples)))
    found = examine(model, few.batch(range(len(few))), few.labels, data_classes=samples.num_classes)
    return found, Examination(
        n=len(few),
        data=_which(few),
        date=_today(),
        findings=tuple(finding.flag() for finding in found),
    )


def _which(samples: Dataset) -> str:
    return f"{samples.name}, {samples.split} split, sha256 {samples.fingerprint}"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
