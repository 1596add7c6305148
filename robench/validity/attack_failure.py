"""Indicators of attack failure: what the evaluation's own first attack does on its way.

Pintor et al., "Indicators of Attack Failure: Debugging and Improving Optimization of Adversarial
Examples", NeurIPS 2022. An attack on a few samples is traced step by step: whether its gradients
vanish on the way, whether it was cut short while its loss still rose, and whether it passed over a
misclassified point. And the same kind of attack without a bound has to find something for nearly
every sample.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.attacks import build_attack
from robench.doctor.subject import Subject
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.queries import Queries
from robench.evaluation.samples import Samples, SearchResult
from robench.evaluation.search import Search
from robench.evaluation.traces import Tracer
from robench.records import AttackSpec, Diagnosis
from robench.reporting.traces import attack_failures
from robench.results.traces import Rows
from robench.threat_models import Norm, ThreatModel
from robench.validity.binarisation import FIRST_ATTACK

_UNBOUNDED = AttackSpec(
    name="pgd",
    attack="pgd",
    params={"steps": 50, "relative_step_size": 0.04, "random_start": False},
)
"""From the input across all of the box, in so many steps and back"""
_REACHED = 0.95
"""Share of the samples that it has to find something for."""


def attack_failure(subject: Subject, threat_model: ThreatModel, seed: int) -> list[Diagnosis]:
    """The indicators on correctly classified samples, each a diagnosis of its own."""
    untargeted, rows = replace(threat_model, targets=None), list[Rows]()
    positions = torch.arange(len(subject.labels))
    tracer = Tracer(rows.append, 0, positions, improvements=False)
    result = _searched(subject, FIRST_ATTACK, untargeted, seed, tracer)
    frame = pd.concat([pd.DataFrame(part) for part in rows])
    frame = frame[frame["step"] >= 0].sort_values(["sample", "step"])
    frame = frame.assign(stage=FIRST_ATTACK.name, recheck=False, sample_id=frame["sample"].map(str))
    survived = (result.settled >= result.searches).nonzero().squeeze(1)
    names = [str(row) for row in survived.tolist()]
    told = attack_failures([frame], names, FIRST_ATTACK.name)
    return [*told, unbounded_attack(subject, threat_model, seed)]


def unbounded_attack(subject: Subject, threat_model: ThreatModel, seed: int) -> Diagnosis:
    """Whether gradients lead out of the class at all, where nothing bounds them but the box."""
    everywhere = ThreatModel.of(threat_model.norm, _radius_of_box(subject, threat_model.norm))
    found = float(_searched(subject, _UNBOUNDED, everywhere, seed).broken.double().mean())
    masked = found < _REACHED - 1 / len(subject.labels)
    return Diagnosis(
        test="unbounded_attack",
        outcome="masked" if masked else "sound",
        evidence=f"gradients that nothing bounds lead {found:.0%} of {len(subject.labels)} samples out of "
        f"their class (of a sound model {_REACHED:.0%} at least)",
        value=found,
        threshold=_REACHED,
        asks_for=("bpda", "distilled", "transfer", "square-more", "decision") if masked else (),
    )


def _radius_of_box(subject: Subject, norm: Norm) -> float:
    dimensions = subject.inputs.shape[1:].numel()
    return {"Linf": 1.0, "L2": math.ceil(math.sqrt(dimensions)), "L1": float(dimensions)}[norm]


def _searched(
    subject: Subject,
    spec: AttackSpec,
    threat_model: ThreatModel,
    seed: int,
    tracer: Tracer | None = None,
) -> SearchResult:
    """One search of an attack for each sample, on the model as it is, judged as any other."""
    attack: Any = build_attack(spec, threat_model)
    model, count = subject.model, len(subject.labels)
    places = torch.arange(count, device=subject.inputs.device)
    keys = seeding.derive(places, seed, seeding.tag("attack failure"))
    adjudicator = Adjudicator(model, threat_model)
    clean = adjudicator.logits(subject.inputs)
    search: Search[Any] = Search(
        attack,
        Queries(SearchModel(model), clean.shape[1], count),
        adjudicator,
        Samples(subject.inputs, subject.labels, clean, keys),
        batch_size=count,
        tracer=tracer,
    )
    return search.run()
