"""Records with chosen outcomes, for the tests of rooms that only read records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from robench.records import (
    AttackSpec,
    AuditResult,
    Cost,
    DatasetSpec,
    Environment,
    EvaluationRecord,
    Flag,
    MetricSummary,
    ModelSummary,
    Outcome,
    SampleOutcome,
    canonical_hash,
    job_key,
)
from robench.results import StoredRecord, samples_to_table
from robench.results.consistency import class_accuracies, metric_means
from robench.results.tables import metric_columns, table_to_frame
from robench.text import visible
from robench.threat_models import ThreatModel

LETTERS = {
    "C": Outcome.CLEAN_ERROR,
    "B": Outcome.BROKEN,
    "S": Outcome.SURVIVED,
    "E": Outcome.ERRORED,
}


def make_samples(
    letters: str,
    *,
    classes: int = 2,
    values: Mapping[str, Sequence[float]] | None = None,
    forwards: int = 3,
) -> list[SampleOutcome]:
    """One sample a letter: C clean error, B broken, S survived, E errored."""
    samples = []
    for number, letter in enumerate(letters):
        label = number % classes
        outcome = LETTERS[letter]
        wrong = (label + 1) % classes
        clean = {"C": wrong, "E": None}.get(letter, label)
        samples.append(
            SampleOutcome(
                sample_id=f"toy/{number:05d}",
                label=label,
                outcome=outcome,
                clean_prediction=clean,
                clean_margin=None if clean is None else 1.5 if clean == label else -0.5,
                adv_prediction={"B": wrong, "S": label}.get(letter),
                adv_margin={"B": -0.25, "S": 0.75}.get(letter),
                broken_by="toy" if letter == "B" else None,
                perturbation_size=0.1 if letter in "BS" else None,
                forwards=forwards,
                backwards=forwards - 1,
                message="logits are not finite" if letter == "E" else None,
                values={k: float(v[number]) for k, v in (values or {}).items()},
            )
        )
    return samples


def make_record(
    samples: Sequence[SampleOutcome],
    *,
    model: str = "toy",
    attack: str = "pgd-20",
    dataset: str = "digits",
    data: str = "a",
    threat: str = "Linf-0.2",
    seed: int = 0,
    classes: int = 2,
    defense: str = "standard",
    flags: Sequence[Flag] = (),
    metrics: Mapping[str, MetricSummary] | None = None,
    seconds: float = 1.25,
    params: Mapping[str, Any] | None = None,
    precision: str | None = "auto",
    kind: str = "pgd",
    audit: AuditResult | None = None,
    spec: AttackSpec | None = None,
) -> EvaluationRecord:
    """A record whose key, counts, cost, means and accuracies follow from the samples.

    ``metrics`` are other means, for what is never read from a store.
    """
    threat_model = ThreatModel.parse(threat)
    fingerprint = canonical_hash(["model", model])
    data_fingerprint = canonical_hash(["data", dataset, data, len(samples)])
    spec = spec or AttackSpec(
        name=attack, attack=kind, params={"steps": 20, **(params or {}), "id": attack}
    )
    counts = Counter(sample.outcome for sample in samples)
    dataset_spec = DatasetSpec(
        name=dataset,
        split="test",
        fingerprint=data_fingerprint,
        n=len(samples),
        num_classes=classes,
        class_names=tuple(f"class {k}" for k in range(classes)),
    )
    record = EvaluationRecord(
        key=job_key(
            model=fingerprint,
            dataset=dataset_spec,
            threat_model=threat_model,
            attack=spec,
            seed=seed,
            precision=precision,
            foreign={},
        ),
        model=ModelSummary(
            id=f"{dataset}/{threat_model.slug}/{model}",
            name=model,
            dataset=dataset,
            defense=defense,
            architecture="digits-resnet",
            parameters=20_000,
            threat_model=threat_model,
            weights_sha256=canonical_hash(["weights", model]),
            fingerprint=fingerprint,
        ),
        dataset=dataset_spec,
        threat_model=threat_model,
        attack=spec,
        seed=seed,
        precision=precision,
        counts=dict(counts),
        flags=tuple(flags),
        audit=audit,
        cost=Cost(
            forwards=sum(s.forwards for s in samples),
            backwards=sum(s.backwards for s in samples),
            seconds=seconds,
        ),
        environment=Environment(
            device="cpu", device_name="toy", precision="float32", batch_size=64
        ),
        created="2026-01-02T03:04:05Z",
    )
    arrow = samples_to_table(samples)
    table = table_to_frame(arrow)
    means = metric_means(table, {visible(name): name for name in metric_columns(arrow)})
    return record.model_copy(
        update={
            "class_robust_acc": class_accuracies(record, table),
            "metrics": means if metrics is None else dict(metrics),
        }
    )


def make_stored(
    letters: str, *, values: Any = None, classes: int = 2, **kwargs: Any
) -> StoredRecord:
    """A record in memory from one letter a sample."""
    samples = make_samples(letters, classes=classes, values=values)
    return StoredRecord.of(make_record(samples, classes=classes, **kwargs), samples)


__all__ = ["make_record", "make_samples", "make_stored"]
