"""Countermeasures by name: the attacks that break a kind of mask, chosen by what diagnoses ask for.

They are data (``countermeasures.toml``): entries as a suite has them. Those that were asked for, and
those that are always tried, become the stages of one cascade, the cheapest first, so that one
ordinary record says which of them broke how many.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from robench.attacks import build_attack
from robench.errors import RobenchError, UsageError
from robench.models.wrapper import RobenchModel
from robench.models.zoo import list_cards
from robench.records import AttackSpec, Diagnosis, canonical_hash, parse
from robench.records.base import Frozen, Name
from robench.stand_ins.catalogue import find_stand_in
from robench.threat_models import NORMS, Norm, ThreatModel

CASCADE = "countermeasures"
"""The name of the cascade's column"""

_FILE = Path(__file__).with_suffix(".toml")


class Countermeasure(Frozen):
    """One kind of attack against one kind of mask."""

    name: Name
    summary: str
    always: bool = False
    """Whether it is tried unasked: it is cheap."""
    norms: tuple[Norm, ...] = NORMS
    through_zoo: tuple[str, ...] = ()
    """Recipes: each stage goes through the zoo's models of these for the data."""
    through_outputs: bool = False
    """Whether stages through ``auxiliary`` are for models with further outputs, and once more for each
    other way through the network."""
    stages: tuple[AttackSpec, ...]


@dataclass(frozen=True)
class Chosen:
    """A countermeasure that is due for a model.

    Attributes:
        asked_by: the tests that asked for it; none: it is always tried.
        stages: what can be run of it.
        problem: why the rest, or all of it, cannot, or None.
    """

    name: str
    asked_by: tuple[str, ...]
    stages: tuple[AttackSpec, ...] = ()
    problem: str | None = None


@cache
def countermeasures() -> dict[str, Countermeasure]:
    """All by name, the cheapest first."""
    content = tomllib.loads(_FILE.read_text())["countermeasures"]
    found = [parse(Countermeasure, item, UsageError, where=_FILE.name) for item in content]
    return {item.name: item for item in found}


def identity() -> str:
    """The hash of all that is tried: a validation with other countermeasures is another one."""
    return canonical_hash([item.model_dump(mode="json") for item in countermeasures().values()])


def choose(
    diagnoses: Iterable[Diagnosis], model: RobenchModel, threat_model: ThreatModel
) -> list[Chosen]:
    """What is due for a model, in order of cost.

    What a test from outside asks for and nobody knows is among them, with that as its problem.
    """
    asked: dict[str, list[str]] = {item.name: [] for item in countermeasures().values()}
    for diagnosis in diagnoses:
        for name in diagnosis.asks_for if diagnosis.outcome == "masked" else ():
            asked.setdefault(name, []).append(diagnosis.test)
    chosen = []
    for name, by in asked.items():
        known = countermeasures().get(name)
        if known is None:
            chosen.append(Chosen(name, tuple(by), problem="robench has no such countermeasure"))
        elif by or (known.always and _stages(known, model)):
            chosen.append(_prepared(known, tuple(by), model, threat_model))
    return chosen


def cascade(chosen: Sequence[Chosen]) -> AttackSpec | None:
    """The stages of all that is due as one entry; None: there is none."""
    stages = tuple(stage for item in chosen for stage in item.stages)
    return AttackSpec(name=CASCADE, escalation=True, stages=stages) if stages else None


def _prepared(
    known: Countermeasure, by: tuple[str, ...], model: RobenchModel, threat_model: ThreatModel
) -> Chosen:
    if threat_model.norm not in known.norms:
        return Chosen(known.name, by, problem=f"it is not defined under {threat_model.norm}")
    usable, problems = [], []
    for stage in _stages(known, model):
        try:
            build_attack(stage, threat_model)
            if stage.through is not None:
                find_stand_in(stage.through)
        except RobenchError as error:
            problems.append(str(error))
        else:
            usable.append(stage)
    if not usable and not problems:
        problems.append(
            "the model has no further outputs"
            if not known.through_zoo
            else "the zoo has no other model for the data"
        )
    return Chosen(known.name, by, tuple(usable), "; ".join(dict.fromkeys(problems)) or None)


def _stages(known: Countermeasure, model: RobenchModel) -> tuple[AttackSpec, ...]:
    """The stages as this model runs them, each under its own name."""
    stages: list[AttackSpec] = []
    for stage in known.stages:
        if known.through_zoo:
            stages += _through_zoo(stage, known.through_zoo, model)
        elif known.through_outputs and stage.through is not None:
            stages += _through_outputs(stage, stage.through, model)
        else:
            stages += stage.for_outputs(model.outputs)
    return tuple(stages)


def _through_outputs(stage: AttackSpec, through: str, model: RobenchModel) -> list[AttackSpec]:
    own = [stage] if model.outputs else []
    return own + [
        stage.model_copy(update={"name": f"{stage.name}-{way}", "through": f"{through}:{way}"})
        for way in model.alternatives
    ]


def _through_zoo(
    stage: AttackSpec, recipes: Sequence[str], model: RobenchModel
) -> list[AttackSpec]:
    return [
        stage.model_copy(
            update={
                "name": f"{stage.name}-{located.card.name}",
                "through": f"model:{located.id}",
            }
        )
        for recipe in recipes
        for located in list_cards(model.summary.dataset, problems=[])
        if located.card.defense == recipe and located.id != model.summary.id
    ]
