"""Attack specifications and suites: what is run."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_validator

from robench.records.base import Frozen, Name, Real, SchemaVersion, Shown, Table, Whole
from robench.threat_models import NORMS, Family

JUDGED = "judged"
"""The attack of records whose adversarial inputs were made elsewhere"""


class AuditSpec(Frozen):
    """The audit of the ``core`` protocol: later stages on a random sample of survivors first."""

    fraction: Real = Field(0.1, gt=0, le=1)
    minimum: Whole = Field(100, ge=1)
    first_stage: Whole = Field(ge=1)
    """Index of the first stage that only the audited sample runs."""

    def sample_size(self, survivors: int) -> int:
        """How many of so many survivors are audited."""
        return min(survivors, max(self.minimum, round(self.fraction * survivors)))


class AttackSpec(Frozen):
    """One attack, or a cascade of stages in which only survivors go on."""

    name: Name
    """The column's name."""
    attack: str = "cascade"
    """A registered attack, ``art:CLASS``, ``pyautoattack:VERSION``, ``package.module:Class``, or
    ``cascade`` with stages."""
    params: Table = Field(default_factory=dict)
    norms: tuple[Family, ...] = Field(NORMS, min_length=1)
    """Norms for which a suite uses this entry, or ``corruptions``."""
    output: str | None = None
    """Pattern (``auxiliary_*``) for the names of other outputs of the model to attack, one after
    the other; the verdict is always the final output's. Models without such an output do not run
    the entry, and lack nothing."""
    within: float | None = Field(None, gt=0)
    """Of a stage: only survivors run it whose smallest margin so far is at most so large a share of
    their clean one. None: all survivors."""
    through: Shown | None = None
    """What is searched in the model's place, by its name in :mod:`robench.stand_ins.catalogue` and
    what that takes (``model:NAME``), or ``package.module:Class``; verdicts stay the model's own."""
    escalation: bool = False
    """Chosen for one model by what its diagnoses ask for: its finds count among what is best known of
    the model, and no other lacks it. It decides no number."""
    stages: tuple[AttackSpec, ...] = ()
    audit: AuditSpec | None = None

    @model_validator(mode="after")
    def _consistent(self) -> AttackSpec:
        if (self.attack == "cascade") != bool(self.stages):
            raise ValueError(
                f"attack {self.name!r}: a cascade has stages, any other attack has none"
            )
        if self.audit is not None and not 1 <= self.audit.first_stage < len(self.stages):
            raise ValueError(f"attack {self.name!r}: audit.first_stage is not one of its stages")
        if any(stage.stages for stage in self.stages):
            raise ValueError(f"attack {self.name!r}: a stage has no stages of its own")
        if self.stages and self.stages[0].within is not None:
            raise ValueError(f"attack {self.name!r}: within makes no sense for the first stage")
        if self.through is not None and self.stages:
            raise ValueError(
                f"attack {self.name!r}: a cascade's stages say each what they go through"
            )
        if self.through is not None and self.output is not None:
            raise ValueError(
                f"attack {self.name!r}: what it goes through has no output of that name"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"attack {self.name!r}: stage names repeat")
        return self

    @property
    def is_judged(self) -> bool:
        """Whether it stands for inputs from elsewhere, which robench judged and did not make."""
        return self.attack == JUDGED

    @property
    def is_optional(self) -> bool:
        """Whether a model without it lacks nothing: it is for certain further outputs, or inputs
        that somebody brought."""
        of_outputs = self.output is not None or any(stage.is_optional for stage in self.stages)
        return of_outputs or self.is_judged

    def for_outputs(self, names: Iterable[str]) -> tuple[AttackSpec, ...]:
        """The stages that a model with these further outputs runs; none: the entry is not for it."""
        expanded: list[AttackSpec] = []
        for stage in self.stages or (self,):
            if stage.output is None:
                expanded.append(stage)
                continue
            for name in sorted(fnmatch.filter(names, stage.output)):
                expanded.append(stage.model_copy(update={"name": name, "output": name}))
        return tuple(expanded)

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data that determines the numbers (not the column's name)."""
        content = self.model_dump(mode="json", exclude={"name", "norms", "escalation", "stages"})
        for later in ("within", "through"):  # as before there were such stages
            if content[later] is None:
                del content[later]
        content["stages"] = [{"name": s.name, **s.identity} for s in self.stages]
        return content

    def for_norm(self, norm: Family) -> AttackSpec | None:
        """The same attack with only the stages that are meant for ``norm``; None: it is not."""
        if norm not in self.norms:
            return None
        if not self.stages:
            return self
        kept = [number for number, stage in enumerate(self.stages) if norm in stage.norms]
        if not kept:
            return None
        audit = self.audit
        if audit is not None:
            # The stages before the audit may be others' alone, or those after it.
            first = sum(number < audit.first_stage for number in kept)
            audited = 0 < first < len(kept)
            audit = audit.model_copy(update={"first_stage": first}) if audited else None
        stages = tuple(self.stages[number] for number in kept)
        return self.model_copy(update={"stages": stages, "audit": audit})


class Suite(Frozen):
    """A versioned list of attacks. Each entry starts from the clean inputs of all samples."""

    schema_version: SchemaVersion = 1
    name: Name
    version: Whole = Field(1, ge=1)
    description: str = ""
    attacks: tuple[AttackSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Suite:
        # The same column may be defined once for each norm.
        seen: set[tuple[str, str]] = set()
        for spec in self.attacks:
            if spec.within is not None:
                raise ValueError(f"suite {self.name!r}: {spec.name!r}: within is for later stages")
            for norm in spec.norms:
                if (spec.name, norm) in seen:
                    raise ValueError(f"suite {self.name!r}: {spec.name!r} twice for {norm}")
                seen.add((spec.name, norm))
        return self

    def for_norm(self, norm: Family) -> tuple[AttackSpec, ...]:
        """The entries that are meant for ``norm``."""
        fitting = (spec.for_norm(norm) for spec in self.attacks)
        return tuple(spec for spec in fitting if spec is not None)

    def for_model(self, norm: Family, outputs: Iterable[str]) -> tuple[AttackSpec, ...]:
        """The entries for ``norm`` that a model with these further outputs runs."""
        names = list(outputs)
        return tuple(spec for spec in self.for_norm(norm) if spec.for_outputs(names))
