"""The frozen, versioned facts that pass between rooms.

Everything that is read from a file or written to one has its type here: model cards, attack
specifications, suites, per-sample outcomes and evaluation records. All are immutable, refuse
unknown fields, and round-trip through JSON.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from robench.threat_models import Norm, ThreatModel

__all__ = [
    "RECORD_SCHEMA_VERSION",
    "RESULTS_REVISION",
    "ArchitectureSpec",
    "AttackSpec",
    "AttentionSpec",
    "AuditSpec",
    "Cost",
    "DatasetSpec",
    "Environment",
    "EvaluationRecord",
    "Examination",
    "Flag",
    "ForwardSpec",
    "InputSpec",
    "MetricSummary",
    "ModelCard",
    "ModelSummary",
    "Outcome",
    "OutputPath",
    "PreprocessingSpec",
    "Provenance",
    "SampleOutcome",
    "StageResult",
    "Suite",
    "WeightsSpec",
    "canonical_hash",
    "job_key",
    "validation_problems",
]

RECORD_SCHEMA_VERSION = 1
"""Version of the JSON layout. A change of fields raises it and needs a migration."""

RESULTS_REVISION = 2
"""Raised when the same job would give other numbers, so that old records are not reused."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=100)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
OutputPath = tuple[int | str, ...]
"""How to reach a tensor in what ``forward`` returns: indices and keys, outermost first."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def canonical_hash(content: Any) -> str:
    """SHA-256 of the canonical JSON form (sorted keys, no spaces) of plain data."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def validation_problems(error: ValidationError) -> str:
    """What is wrong with which field, in one line for people."""
    problems = []
    for detail in error.errors():
        field = ".".join(map(str, detail["loc"]))
        if detail["type"] == "missing":
            problems.append(f"{field} is missing")
        elif detail["type"] == "extra_forbidden":
            problems.append(f"{field} is not a field")
        else:
            message = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)


# --- cards ---------------------------------------------------------------------------------


class ArchitectureSpec(_Frozen):
    """Which module to build, without weights."""

    name: str
    """A registered architecture, ``torchvision:NAME``, ``timm:NAME``, or ``package.module:callable``."""
    arguments: dict[str, Any] = Field(default_factory=dict)


class WeightsSpec(_Frozen):
    """Where the parameters are and how to find them in the file."""

    path: str
    """Relative to the card, absolute, ``package:NAME/inside/it``, or an https URL."""
    sha256: Sha256
    key: str | None = None
    """Dotted path to the state dict inside the file; None: the file is the state dict."""
    strip_prefix: str = ""
    """Prefix to remove from every parameter name, such as ``module.``."""


class InputSpec(_Frozen):
    """What the network expects, given that robench's inputs are RGB in [0, 1].

    The wrapper computes ``(low + x · (high − low) − mean) / std``, on the channels in the given
    order.
    """

    channels: int = Field(3, ge=1)
    size: tuple[int, int] | None = None
    """Height and width, where the architecture fixes them."""
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: Literal["RGB", "BGR"] = "RGB"

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _for_all_channels(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("give a number, or one for each channel")
        return (value,) if isinstance(value, (int, float)) else value

    @model_validator(mode="after")
    def _consistent(self) -> InputSpec:
        if self.high <= self.low:
            raise ValueError(f"high ({self.high}) must be above low ({self.low})")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class PreprocessingSpec(_Frozen):
    """How an image of any size becomes the pixels that are evaluated and attacked.

    ``resize=256, crop=224`` is the field's preprocessing for ImageNet; ``size=(32, 32)``
    stretches to exactly that size.
    """

    resize: int | None = Field(None, ge=1)
    """Length of the shorter side, keeping the aspect ratio."""
    crop: int | None = Field(None, ge=1)
    """Side of the central square that is kept; zero-padded where the image is smaller."""
    size: tuple[int, int] | None = None
    """Height and width to stretch to, instead of ``resize``."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @model_validator(mode="after")
    def _one_way(self) -> PreprocessingSpec:
        if self.size is not None and self.resize is not None:
            raise ValueError("size and resize exclude each other")
        if self.size is not None and min(self.size) < 1:
            raise ValueError("size must be positive")
        return self


class ForwardSpec(_Frozen):
    """How to call the network and where its logits are."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Extra keyword arguments for every forward call."""
    output: OutputPath = ()
    """Path to the logits; empty: ``forward`` returns them."""
    outputs: dict[str, OutputPath] = Field(default_factory=dict)
    """Further named logits that an attack may aim at (auxiliary heads)."""
    outputs_arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments that replace ``arguments`` when a named output is asked for."""


class AttentionSpec(_Frozen):
    """How to look at the network's attention and features."""

    method: Literal["grad_cam", "rollout", "feature_sum", "none"] = "grad_cam"
    layer: str | None = None
    """Module whose output is the feature map; None: the last spatial one."""
    feature_layer: str | None = None
    """Module whose *input* is the penultimate feature vector; None: the last linear layer."""


class Flag(_Frozen):
    """A reason to doubt the number, as data."""

    name: str
    severity: Literal["note", "warning", "severe"]
    evidence: str
    """What was seen, with figures."""
    count: int | None = None


class Examination(_Frozen):
    """What the doctor said of a model when its card was made."""

    n: int = Field(ge=1)
    """Samples looked at."""
    data: str
    """Which they were: name, split and fingerprint."""
    date: str
    findings: tuple[Flag, ...]
    """Empty: nothing was found."""


class Provenance(_Frozen):
    """Where the weights come from and what was said about them."""

    paper: str | None = None
    authors: str | None = None
    link: str | None = None
    venue: str | None = None
    year: int | None = None
    command: str | None = None
    """The command that reproduces the weights."""
    training_data: str | None = None
    seed: int | None = None
    epochs: int | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    """The recipe's parameters as used."""
    validation: dict[str, float] = Field(default_factory=dict)
    """Figures on the validation split that chose the checkpoint, in percent."""
    reported: dict[str, float] = Field(default_factory=dict)
    """Figures that the authors report, in percent; never mixed with measured ones."""
    measured: dict[str, float | int | str] = Field(default_factory=dict)
    """Figures that we measured, with n, data and command among them."""
    examination: Examination | None = None
    """What ``robench doctor`` found when the card was made; None: not asked."""
    versions: dict[str, str] = Field(default_factory=dict)
    notes: str | None = None


class ModelCard(_Frozen):
    """Everything needed to turn a weights file into a model that robench can evaluate."""

    schema_version: Literal[1] = 1
    name: Name
    dataset: Name
    """The data set it classifies, as robench names it."""
    num_classes: int = Field(ge=2)
    threat_model: ThreatModel
    """What it is evaluated under unless told otherwise."""
    defense: str
    """The recipe's name, ``standard`` for none."""
    display_name: str | None = None
    architecture: ArchitectureSpec
    weights: WeightsSpec
    input: InputSpec = Field(default_factory=lambda: InputSpec())
    preprocessing: PreprocessingSpec | None = None
    """How images of other sizes are prepared for it; None: as the data set does."""
    forward: ForwardSpec = Field(default_factory=lambda: ForwardSpec())
    attention: AttentionSpec = Field(default_factory=lambda: AttentionSpec())
    provenance: Provenance = Field(default_factory=lambda: Provenance())

    @property
    def id(self) -> str:
        """``dataset/threat/name``: the card's folder below ``model_zoo``."""
        return f"{self.dataset}/{self.threat_model.slug}/{self.name}"

    @property
    def fingerprint(self) -> str:
        """Hash of all that determines the numbers: weights, architecture, input, forward, attention."""
        parts = self.model_dump(
            mode="json", include={"num_classes", "architecture", "input", "forward", "attention"}
        )
        weights = self.weights.model_dump(mode="json", exclude={"path"})
        return canonical_hash({**parts, "weights": weights})


# --- attacks and suites --------------------------------------------------------------------


class AuditSpec(_Frozen):
    """The audit of the ``core`` protocol: later stages on a random sample of survivors first."""

    fraction: float = Field(0.1, gt=0, le=1)
    minimum: int = Field(100, ge=1)
    first_stage: int = Field(ge=1)
    """Index of the first stage that only the audited sample runs."""


class AttackSpec(_Frozen):
    """One attack, or a cascade of stages in which only survivors go on."""

    name: Name
    """The column's name."""
    attack: str = "cascade"
    """A registered attack, ``art:CLASS``, ``pyautoattack:VERSION``, or ``cascade`` with stages."""
    params: dict[str, Any] = Field(default_factory=dict)
    norms: tuple[Norm, ...] = ("Linf", "L2", "L1")
    """Norms for which a suite uses this entry."""
    output: str | None = None
    """Pattern (``auxiliary_*``) for the names of other outputs of the model to attack, one after
    the other; the verdict is always the final output's. Models without such an output do not run
    the entry, and lack nothing."""
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
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"attack {self.name!r}: stage names repeat")
        return self

    @property
    def is_optional(self) -> bool:
        """Whether only models with certain further outputs run it."""
        return self.output is not None or any(stage.is_optional for stage in self.stages)

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
        content = self.model_dump(mode="json", exclude={"name", "norms", "stages"})
        content["stages"] = [{"name": s.name, **s.identity} for s in self.stages]
        return content

    def for_norm(self, norm: Norm) -> AttackSpec:
        """The same attack with only the stages that are meant for ``norm``."""
        if not self.stages:
            return self
        stages = tuple(stage for stage in self.stages if norm in stage.norms)
        return self.model_copy(update={"stages": stages})


class Suite(_Frozen):
    """A versioned list of attacks. Each entry starts from the clean inputs of all samples."""

    schema_version: Literal[1] = 1
    name: Name
    version: int = Field(1, ge=1)
    description: str = ""
    attacks: tuple[AttackSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> Suite:
        # The same column may be defined once for each norm.
        seen: set[tuple[str, str]] = set()
        for spec in self.attacks:
            for norm in spec.norms:
                if (spec.name, norm) in seen:
                    raise ValueError(f"suite {self.name!r}: {spec.name!r} twice for {norm}")
                seen.add((spec.name, norm))
        return self

    def for_norm(self, norm: Norm) -> tuple[AttackSpec, ...]:
        """The entries that are meant for ``norm``."""
        return tuple(spec.for_norm(norm) for spec in self.attacks if norm in spec.norms)

    def for_model(self, norm: Norm, outputs: Iterable[str]) -> tuple[AttackSpec, ...]:
        """The entries for ``norm`` that a model with these further outputs runs."""
        names = list(outputs)
        return tuple(spec for spec in self.for_norm(norm) if spec.for_outputs(names))


# --- results -------------------------------------------------------------------------------


class Outcome(StrEnum):
    """The verdict on one sample. ``errored`` is never robust."""

    CLEAN_ERROR = "clean_error"
    BROKEN = "broken"
    SURVIVED = "survived"
    ERRORED = "errored"


class SampleOutcome(_Frozen):
    """One row of a record's table.

    ``values`` holds attention and representation numbers under their metric names; a missing
    key or NaN means undefined, never 0.
    """

    sample_id: str
    label: int
    outcome: Outcome
    clean_prediction: int | None
    clean_margin: float | None
    """logit of the label minus the largest other, fp32; negative: misclassified."""
    adv_prediction: int | None = None
    adv_margin: float | None = None
    """Margin at the adversarial input, for survivors at the attack's best input."""
    broken_by: str | None = None
    """The stage that broke it, or the attack's own name."""
    perturbation_size: float | None = None
    """In the threat model's norm, [0, 1] pixel units."""
    forwards: int = 0
    backwards: int = 0
    message: str | None = None
    values: dict[str, float] = Field(default_factory=dict)


class DatasetSpec(_Frozen):
    """Which samples were used."""

    name: str
    split: str
    fingerprint: Sha256
    """Hash over sample ids, labels and pixels, in order of ids."""
    n: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    class_names: tuple[str, ...] = ()


class ModelSummary(_Frozen):
    """What a leaderboard needs to know of a model without its card."""

    id: str
    name: str
    dataset: str
    defense: str
    architecture: str
    parameters: int
    threat_model: ThreatModel
    """What it was trained or carded for; the record's own says what it was attacked under."""
    weights_sha256: Sha256
    fingerprint: Sha256


class StageResult(_Frozen):
    """One stage of a cascade."""

    name: str
    search: str | None = None
    """What this run of the stage searched on, where it was not what the record names."""
    attempted: int
    broken: int
    errored: int = 0
    forwards: int
    backwards: int
    seconds: float
    skipped: str | None = None
    """Why the stage did not run, if it did not."""


class MetricSummary(_Frozen):
    """Mean of one metric over the correctly classified samples, and by outcome."""

    mean: float | None
    mean_broken: float | None = None
    mean_survived: float | None = None
    n: int = 0
    """Samples that went into ``mean``."""


class AuditResult(_Frozen):
    """What the audit of a ``core`` protocol saw."""

    survivors: int
    audited: int
    hits: int
    escalated: bool
    missed_share_upper: float | None
    """95 % upper bound on the share of survivors that the audit may have missed."""


class Cost(_Frozen):
    """What the evaluation took."""

    forwards: int
    backwards: int
    seconds: float
    samples_per_second: float | None = None
    peak_memory_mib: float | None = None


class Environment(_Frozen):
    """Where and how it ran."""

    device: str
    device_name: str
    precision: str
    """What the search used: precision, layout and compilation, as chosen."""
    batch_size: int
    threads: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    git: str | None = None
    """Commit and dirty state of the working tree, if run from one."""


class EvaluationRecord(_Frozen):
    """One (checkpoint, data, threat model, attack, seed), evaluated."""

    schema_version: int = RECORD_SCHEMA_VERSION
    key: Sha256
    model: ModelSummary
    dataset: DatasetSpec
    threat_model: ThreatModel
    attack: AttackSpec
    seed: int
    counts: dict[Outcome, int]
    stages: tuple[StageResult, ...] = ()
    audit: AuditResult | None = None
    flags: tuple[Flag, ...] = ()
    metrics: dict[str, MetricSummary] = Field(default_factory=dict)
    attention_method: str | None = None
    """The map and the layer it was taken at."""
    class_robust_acc: dict[str, float] = Field(default_factory=dict)
    """Robust accuracy in percent by class name."""
    cost: Cost
    environment: Environment
    created: str
    """UTC, ISO 8601."""

    @property
    def n(self) -> int:
        """Number of samples."""
        return sum(self.counts.values())

    def count(self, outcome: Outcome) -> int:
        """Number of samples with this outcome."""
        return self.counts.get(outcome, 0)


def job_key(
    model_fingerprint: str,
    dataset_fingerprint: str,
    threat_model: ThreatModel,
    attack: AttackSpec,
    seed: int,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """The content address of a record: a hash of exactly what determines its numbers."""
    return canonical_hash(
        {
            "revision": RESULTS_REVISION,
            "model": model_fingerprint,
            "dataset": dataset_fingerprint,
            "threat_model": threat_model.identity,
            "attack": attack.identity,
            "seed": seed,
            **(extra or {}),
        }
    )
