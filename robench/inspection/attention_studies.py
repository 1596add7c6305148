"""From a request to studies of attention: stored adversarial inputs, or a fresh attack."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from robench.evaluation.runner import Listener, key_of
from robench.inspection.attention_study import (
    AttentionStudy,
    chosen_attention,
    chosen_target,
    study_attention,
)
from robench.preparation import Planned, Prepared, prepare
from robench.records import Suite
from robench.registry import unknown_name
from robench.request import PRECISIONS, Request
from robench.results import Store, StoredRecord
from robench.results.arrays import ArrayRows

__all__ = ["Look", "Studied", "study_models"]

Display = Callable[[int], AbstractContextManager[Listener | None]]


@dataclass(frozen=True)
class Look:
    """How to look.

    Attributes:
        attack: name of an entry of the suite.
        map_name: kind of map; None: the card's.
        layer: where; None: the card's, or found.
        target: the class, as the user wrote it.
        samples: how many to show.
    """

    attack: str
    map_name: str | None
    layer: str | None
    target: str
    samples: int


@dataclass(frozen=True)
class Studied:
    """One model's study, and where its adversarial inputs came from."""

    study: AttentionStudy
    source: str
    """``stored`` or ``fresh``."""


def study_models(
    request: Request, look: Look, *, display: Display = lambda jobs: nullcontext()
) -> list[Studied]:
    """Study every model that is asked for. Writes nothing.

    Args:
        request: models, data and attack's suite; the results folder is read.
        look: how.
        display: number of attacks to be run → a context that gives their listener.

    Raises:
        RobenchError: as :func:`robench.preparation.prepare` and
            :func:`robench.inspection.attention_study.study_attention`; an attack that the suite
            has not, near misses listed.
    """
    prepared = prepare(request)
    prepared = replace(prepared, suite=_only(prepared.suite, look.attack))
    specs = [
        chosen_attention(planned.model, method=look.map_name, layer=look.layer)
        for planned in prepared.planned
    ]
    target = chosen_target(look.target, prepared.planned[0].dataset.class_names)
    studied = []
    for planned, spec in zip(prepared.planned, specs, strict=True):
        with tempfile.TemporaryDirectory(prefix="robench-") as scratch:
            stored, adversarial, source = _adversarial(prepared, planned, Path(scratch), display)
            study = study_attention(
                stored,
                adversarial,
                planned.model,
                planned.dataset,
                attention=spec,
                target=target,
                samples=look.samples,
                device=prepared.device,
            )
        studied.append(Studied(study, source))
    return studied


def _only(suite: Suite, attack: str) -> Suite:
    entries = tuple(spec for spec in suite.attacks if spec.name == attack)
    if not entries:
        names = list(dict.fromkeys(spec.name for spec in suite.attacks))
        raise unknown_name(f"attack (suite {suite.name})", attack, names)
    return suite.model_copy(update={"attacks": entries})


def _adversarial(
    prepared: Prepared, planned: Planned, scratch: Path, display: Display
) -> tuple[StoredRecord, ArrayRows, str]:
    """The record, its adversarial inputs (n, C, H, W), and where they are from."""
    kept = Store(prepared.request.folder)
    data = planned.dataset.spec()
    for spec in prepared.suite.for_norm(planned.threat.norm):
        for precision in PRECISIONS:
            settings = replace(prepared.settings, precision=precision)
            key = key_of(planned.model, data, planned.threat, spec, settings)
            if kept.has(key) and kept.has_adversarial(key):
                stored = kept.read(key).shown_as(spec.name, planned.model.summary, data)
                return stored, kept.adversarial_rows(key), "stored"
    request = replace(prepared.request, results=scratch, save_adversarial=True)
    job = replace(prepared, request=request, planned=[planned])
    with display(job.jobs) as listener:
        (stored,) = job.run(listener)
    return stored, Store(scratch).adversarial_rows(stored.record.key), "fresh"
