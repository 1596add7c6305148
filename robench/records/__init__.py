"""The frozen, versioned facts that pass between rooms.

Everything that is read from a file or written to one has its type here: model cards, attack
specifications, suites, per-sample outcomes and evaluation records. All are immutable, refuse
unknown fields, and round-trip through JSON.
"""

from robench.records.base import Flag, canonical_hash, parse
from robench.records.bounds import BoundedSample, Bounds, BoundsMethod, bounds_key
from robench.records.cards import (
    LIBRARIES,
    PROGRAM,
    ArchitectureSpec,
    AttentionSpec,
    Examination,
    ForwardSpec,
    InputSpec,
    ModelCard,
    OutputPath,
    PreprocessingSpec,
    Provenance,
    WeightsSpec,
)
from robench.records.draws import ERROR_RATES, RepeatedDraws
from robench.records.evaluations import (
    REACHED,
    RECORD_SCHEMA_VERSION,
    AuditResult,
    Cost,
    DatasetSpec,
    Environment,
    EvaluationRecord,
    JudgedInputs,
    MadeFor,
    MetricSummary,
    ModelSummary,
    Outcome,
    PartOf,
    RunCounts,
    SampleOutcome,
    StageResult,
    job_key,
    part_key,
)
from robench.records.slopes import Slopes
from robench.records.suites import JUDGED, AttackSpec, AuditSpec, Suite
from robench.records.validations import (
    Diagnosis,
    Trial,
    Validation,
    Verdict,
    validation_key,
)

__all__ = [
    "ERROR_RATES",
    "JUDGED",
    "LIBRARIES",
    "PROGRAM",
    "REACHED",
    "RECORD_SCHEMA_VERSION",
    "ArchitectureSpec",
    "AttackSpec",
    "AttentionSpec",
    "AuditResult",
    "AuditSpec",
    "BoundedSample",
    "Bounds",
    "BoundsMethod",
    "Cost",
    "DatasetSpec",
    "Diagnosis",
    "Environment",
    "EvaluationRecord",
    "Examination",
    "Flag",
    "ForwardSpec",
    "InputSpec",
    "JudgedInputs",
    "MadeFor",
    "MetricSummary",
    "ModelCard",
    "ModelSummary",
    "Outcome",
    "OutputPath",
    "PartOf",
    "PreprocessingSpec",
    "Provenance",
    "RepeatedDraws",
    "RunCounts",
    "SampleOutcome",
    "Slopes",
    "StageResult",
    "Suite",
    "Trial",
    "Validation",
    "Verdict",
    "WeightsSpec",
    "bounds_key",
    "canonical_hash",
    "job_key",
    "parse",
    "part_key",
    "validation_key",
]
