"""Evaluation records: what was found, on which samples, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

from pydantic import Field

from robench.records.base import Flag, Frozen, Sha256, Shown, canonical_hash
from robench.records.cards import PreprocessingSpec
from robench.records.draws import RepeatedDraws
from robench.records.slopes import Slopes
from robench.records.suites import AttackSpec
from robench.threat_models import ThreatModel

RECORD_SCHEMA_VERSION = 1
"""Version of the JSON layout. A change of fields raises it, and reading then has to bring older records
along; a new field with a default does not."""

RESULTS_REVISION = 7
"""Raised when the same job would give other numbers, so that old records are not reused."""

_FIRST_WITH_PRECISION = 6
"""From this revision on, records say what precision was asked for, and keys are made of more."""

_AUDITS_ALONE = 7
"""This revision changed audited protocols alone: other jobs keep the keys of the one before."""


class Outcome(StrEnum):
    """The verdict on one sample. ``errored`` is never robust.

    Of an adversary with targets ``broken`` is a sample that was brought to its target, ``survived``
    one that was not, whatever else became of it.
    """

    CLEAN_ERROR = "clean_error"
    BROKEN = "broken"
    SURVIVED = "survived"
    ERRORED = "errored"
    AT_TARGET = "at_target"
    """Its label is the target: it is no sample of the attack, and counted in no figure."""


REACHED = "reached_"
"""With a class's number behind it: whether a sample reached that target, where all were tried."""


class SampleOutcome(Frozen):
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
    forwards: int | None = 0
    """Passes; None: an attack on whole batches spent them on samples together."""
    backwards: int | None = 0
    message: str | None = None
    values: dict[str, float] = Field(default_factory=dict)


class DatasetSpec(Frozen):
    """Which samples were used."""

    name: Shown
    split: Shown
    fingerprint: Sha256
    """Hash over sample ids, labels and pixels, in order of ids."""
    masks: Sha256 | None = None
    """Hash over the masks of the objects, in order of ids; None: there are none, or not recorded."""
    n: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    class_names: tuple[Shown, ...] = ()
    preprocessing: PreprocessingSpec | None = None
    """What was done to images of other sizes; None: nothing, or not recorded then."""


class ModelSummary(Frozen):
    """What a leaderboard needs to know of a model without its card."""

    id: Shown
    name: Shown
    dataset: Shown
    defense: Shown
    architecture: Shown
    parameters: int
    threat_model: ThreatModel
    """What it was trained or carded for; the record's own says what it was attacked under."""
    weights_sha256: Sha256
    fingerprint: Sha256


class StageResult(Frozen):
    """One stage of a cascade."""

    name: Shown
    search: Shown | None = None
    """What this run of the stage searched on, where it was not what the record names."""
    attempted: int
    broken: int
    errored: int = 0
    forwards: int
    backwards: int
    seconds: float
    skipped: Shown | None = None
    """Why the stage did not run, if it did not."""


class RunCounts(Frozen):
    """What one stage on some of the samples came to: stages and flags are made of these."""

    stage: int
    """Which of the attack's stages"""
    attack: str
    """The stage's"""
    recheck: bool
    """Run again in float32, where searches came near the boundary"""
    listed: bool
    """Whether it stands among the record's stages: what had nothing to do may not"""
    result: StageResult
    searches: int
    zero_gradients: int
    """Searches that began with a gradient of zero"""
    nonfinite_gradients: int


class PartOf(Frozen):
    """Of a record that holds a part of a job's samples: which one, and what joining it takes."""

    index: int = Field(ge=1)
    count: int = Field(ge=1)
    whole: Sha256
    """The key of the record that all parts together make"""
    dataset: DatasetSpec
    """All samples"""
    runs: tuple[RunCounts, ...]

    @property
    def key(self) -> str:
        """The part's own."""
        return part_key(self.whole, self.index, self.count)


class MetricSummary(Frozen):
    """Mean of one metric over the correctly classified samples, and by outcome."""

    mean: float | None
    mean_broken: float | None = None
    mean_survived: float | None = None
    n: int = 0
    """Samples that went into ``mean``."""

    @classmethod
    def of(cls, broken: Sequence[float], survived: Sequence[float]) -> MetricSummary:
        """Of the values that are defined, of broken samples and of survivors.

        Sums are rounded once, so neither the order of the samples nor who adds them matters.
        """
        together = [*broken, *survived]
        mean, mean_broken, mean_survived = map(_mean, (together, broken, survived))
        return cls(mean=mean, mean_broken=mean_broken, mean_survived=mean_survived, n=len(together))


def _mean(values: Sequence[float]) -> float | None:
    if not values or not all(map(math.isfinite, values)):
        return None
    return math.fsum(values) / len(values)


class AuditResult(Frozen):
    """What the audit of a ``core`` protocol saw."""

    survivors: int
    audited: int
    hits: int
    escalated: bool
    """Whether stages ran on the other survivors as well."""
    escalated_to: Shown | None = None
    """The last stage that did; None though ``escalated``: the last of all, in older records"""
    missed_share_upper: float | None
    """95 % upper bound on the share of survivors that the audit may have missed."""


class MadeFor(Frozen):
    """The model that adversarial inputs were made for, before another one judged them."""

    record: Sha256
    """The key of the record that holds them"""
    model: ModelSummary
    attack: AttackSpec
    members: tuple[Sha256, ...] = ()
    """Of an ensemble: the fingerprints of its models"""


class JudgedInputs(Frozen):
    """What became of adversarial inputs that were made elsewhere."""

    source: Shown
    """The file's name, or ``tensors``"""
    sha256: Sha256
    """Of the file; of tensors, of what they hold"""
    read_as: Shown
    """By which rules their pixels and their samples were read"""
    inputs: int
    finds: int
    """Inputs inside the threat model that are misclassified"""
    not_counted: dict[Shown, int] = Field(default_factory=dict)
    """Why the others do not count → how many"""
    outside_ball_by: tuple[float, float] | None = None
    """Least and most, of those that lie outside; in the norm, [0, 1] pixel units"""
    outside_box_by: tuple[float, float] | None = None
    """Least and most, of those that lie outside; of the largest coordinate"""
    finds_in_8_bits: int
    """Finds that are finds still, once their pixels are rounded to the 256 grey levels"""
    made_for: MadeFor | None = None
    """Of inputs that robench made, for another model; None: it does not know for which"""


class Cost(Frozen):
    """What the evaluation took."""

    forwards: int
    backwards: int
    seconds: float
    samples_per_second: float | None = None
    peak_memory_mib: float | None = None
    """On CUDA the device's, on a CPU that of one process, the job's own or a worker's, whichever
    held more. None where it cannot be told: an earlier job of the process held more, or the system
    does not count."""


class Environment(Frozen):
    """Where and how it ran."""

    device: Shown
    device_name: Shown
    precision: Shown
    """What the search used: precision and layout, as chosen."""
    precision_reason: str | None = None
    """Why that was chosen, with the rates that were measured, if any were"""
    batch_size: int
    threads: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    git: str | None = None
    """Commit and dirty state of the working tree, if run from one."""


class EvaluationRecord(Frozen):
    """One (checkpoint, data, threat model, attack, seed), evaluated."""

    schema_version: int = RECORD_SCHEMA_VERSION
    key: Sha256
    model: ModelSummary
    dataset: DatasetSpec
    threat_model: ThreatModel
    attack: AttackSpec
    seed: int
    precision: str | None = None
    """Of the search, as asked for; None: not recorded then."""
    draws: int | None = None
    """Of one verdict, as asked for; None: nobody said how many"""
    repeated_draws: RepeatedDraws | None = None
    """What verdicts are made of; None: outputs are not random, or not recorded then"""
    foreign: dict[str, str] = Field(default_factory=dict)
    """Code from outside robench that was run: attack or metric → version or hash."""
    counts: dict[Outcome, int]
    stages: tuple[StageResult, ...] = ()
    audit: AuditResult | None = None
    judged: JudgedInputs | None = None
    """Of inputs that were made elsewhere; None: robench made them"""
    part: PartOf | None = None
    """Of a part of a job's samples; None: these are all"""
    flags: tuple[Flag, ...] = ()
    metrics: dict[Shown, MetricSummary] = Field(default_factory=dict)
    attention_method: Shown | None = None
    """The map and the layer it was taken at."""
    class_robust_acc: dict[Shown, float] = Field(default_factory=dict)
    """Robust accuracy in percent by class name."""
    slopes: Slopes | None = None
    """By which the model is known again; None: not recorded then, and such a record answers for none"""
    cost: Cost
    environment: Environment
    created: Shown
    """UTC, ISO 8601."""

    def has_its_key(self) -> bool:
        """Whether the key is the content's: of this version or an earlier one of the results."""
        revisions = range(_FIRST_WITH_PRECISION, RESULTS_REVISION + 1)
        if self.precision is None:
            revisions = range(1, _FIRST_WITH_PRECISION)
            if self.foreign or self.dataset.masks:
                return False
        data = self.dataset if self.part is None else self.part.dataset
        keys = {
            job_key(
                model=self.model.fingerprint,
                dataset=data,
                threat_model=self.threat_model,
                attack=self.attack,
                seed=self.seed,
                precision=self.precision,
                draws=self.draws,
                foreign=self.foreign,
                revision=revision,
            )
            for revision in revisions
        }
        if self.part is not None:
            return self.part.whole in keys and self.key == self.part.key
        return self.key in keys

    @property
    def made_for(self) -> MadeFor | None:
        """Of a transfer, what its inputs were made for; None: it is none."""
        return None if self.judged is None else self.judged.made_for

    @property
    def n(self) -> int:
        """Number of samples."""
        return sum(self.counts.values())

    def count(self, outcome: Outcome) -> int:
        """Number of samples with this outcome."""
        return self.counts.get(outcome, 0)


def job_key(
    *,
    model: str,
    dataset: DatasetSpec,
    threat_model: ThreatModel,
    attack: AttackSpec,
    seed: int,
    precision: str | None,
    foreign: Mapping[str, str],
    draws: int | None = None,
    revision: int = RESULTS_REVISION,
) -> str:
    """The content address of a record: a hash of exactly what determines its numbers.

    ``model`` is its fingerprint, ``precision`` the search's as asked for (what ``auto`` chooses is
    not known beforehand), ``foreign`` the code from outside robench that attacks or metrics run,
    ``draws`` those of one verdict, if anybody says how many.
    Up to revision 5 precision was None, and keys held neither these nor the masks.
    """
    if revision == _AUDITS_ALONE and attack.audit is None:
        revision -= 1
    content = {
        "revision": revision,
        "model": model,
        "dataset": dataset.fingerprint,
        "threat_model": threat_model.identity,
        "attack": attack.identity,
        "seed": seed,
    }
    if precision is not None:
        content |= {"masks": dataset.masks, "precision": precision, "foreign": dict(foreign)}
    if draws is not None:
        content["draws"] = draws
    return canonical_hash(content)


def part_key(whole: str, index: int, count: int) -> str:
    """The key of the ``index``-th of ``count`` parts of the job ``whole``: never that of the whole."""
    return canonical_hash({"whole": whole, "part": [index, count]})
