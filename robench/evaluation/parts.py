"""Parts of a job's samples, searched apart: in other processes, on other machines, at other times.

What a search finds of a sample depends on that sample alone, so a part is a job on fewer samples.
What does depend on all of them is done for all of them in each part: clean logits, the doctor's
look, the choice of what searches run on, stand-ins. Metrics that compare samples with each other
wait until :mod:`robench.evaluation.merging` has joined the parts; a part keeps what they are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from robench.attacks import build_attack
from robench.attacks.base import BatchAttack
from robench.datasets.base import Subset, sample_order
from robench.errors import ModelError, UsageError
from robench.evaluation.aims import Aims
from robench.evaluation.prepared_model import ONE_AT_A_TIME, PreparedModel
from robench.evaluation.record_builder import RecordBuilder
from robench.evaluation.sample_metrics import SampleMetrics
from robench.models.loading import is_unique
from robench.records import AttackSpec, EvaluationRecord, PartOf
from robench.request import Part
from robench.threat_models import ThreatModel

POSITIONS, FEATURES, ADV_FEATURES = "part_positions", "part_features", "part_adv_features"
"""Arrays of a part: int64 (n′,), its rows among all samples; float (m′, D), of those of them that
were attacked"""

PANEL_OF_PART = 16
"""Samples that a part shows: whichever of the whole's are among its first"""


def part_rows(sample_ids: Sequence[str], part: Part) -> list[int]:
    """The samples of a part, ascending: every ``count``-th in the order of their ids' hashes."""
    return sorted(sample_order(sample_ids, "shard/")[part.index - 1 :: part.count])


class IndivisibleError(ModelError):
    """A model whose parts would not make the whole."""


def check_divisible(spec: AttackSpec, threat_model: ThreatModel, count: int, part: Part) -> None:
    """Refuse what no part of ``count`` samples can do alone.

    Raises:
        UsageError: more parts than samples; an audit; an attack on whole batches.
    """
    where, how = f"--shard {part.index}/{part.count}", "Run it without --shard"
    if part.count > count:
        raise UsageError(
            f"{count} samples make no {part.count} parts", where=where, hint="Choose fewer parts"
        )
    if (why := needs_all_samples(spec, threat_model)) is not None:
        raise UsageError(why, where=where, hint=f"{how}, or choose another suite, as standard")


def needs_all_samples(spec: AttackSpec, threat_model: ThreatModel) -> str | None:
    """Why what an attack finds of a sample depends on the others; None: it does not."""
    if spec.audit is not None:
        return (
            f"{spec.name} has an audit: which samples it draws, and what it sends to the others, "
            "depends on all samples"
        )
    for stage in spec.stages or (spec,):
        if isinstance(build_attack(stage, threat_model), BatchAttack):
            return (
                f"{stage.name} is another library's attack on whole batches: what it finds of a "
                "sample may depend on those beside it"
            )
    return None


def part_of(prepared: PreparedModel, part: Part) -> PreparedModel:
    """What attacks on a part of the samples start from.

    Raises:
        IndivisibleError: the model draws at random, or changes while it is used; or nothing finds
            its records again.
    """
    if is_unique(prepared.model):
        raise IndivisibleError(
            "the model has another key whenever it is loaded, so its parts would not be joined",
            where=prepared.model.summary.id,
            hint="Its records say why (not_reusable); run it without --shard",
        )
    if unlike := ONE_AT_A_TIME.intersection(flag.name for flag in prepared.flags):
        raise IndivisibleError(
            f"the model is {min(unlike).replace('_', ' ')}: what a sample meets depends on those "
            "before it, so parts do not make the whole",
            where=prepared.model.summary.id,
            hint="Run it without --shard",
        )
    return some_of(prepared, part_rows(prepared.dataset.sample_ids, part))


def some_of(prepared: PreparedModel, chosen: Sequence[int]) -> PreparedModel:
    """What attacks on some of the samples start from; what depends on all stays as it is."""
    data = prepared.dataset
    place = torch.full((len(data),), -1)
    place[torch.tensor(chosen)] = torch.arange(len(chosen))
    mine = place[prepared.rows] >= 0
    aimed = mine[prepared.aims.sample]
    rows = place[prepared.rows[mine]]
    right = place[prepared.metrics.rows]
    right, subset = right[right >= 0], Subset(data, chosen)
    metrics = SampleMetrics(
        prepared.model, subset, right, prepared.settings.device, prepared.metrics.batch_size
    )
    metrics.methods = prepared.metrics.methods  # found out on the first sample of all
    return replace(
        prepared,
        dataset=subset,
        logits=prepared.logits[torch.tensor(chosen)],
        errors={int(place[row]): text for row, text in prepared.errors.items() if place[row] >= 0},
        rows=rows,
        aims=Aims((mine.cumsum(0) - 1)[prepared.aims.sample[aimed]], prepared.aims.classes[aimed]),
        metrics=metrics,
        whole=prepared,
    )


def with_part(
    record: EvaluationRecord, builder: RecordBuilder, part: Part, whole: str
) -> EvaluationRecord:
    """The record of a part of the job whose key is ``whole``."""
    prepared = builder.prepared
    data = (prepared.whole or prepared).dataset.spec()
    of = PartOf(
        index=part.index, count=part.count, whole=whole, dataset=data, runs=builder.attacked.runs
    )
    return record.model_copy(update={"part": of})


def arrays_for_merging(builder: RecordBuilder, part: Part) -> dict[str, NDArray[Any]]:
    """What the whole's record is made of, beside the table."""
    prepared = builder.prepared
    ids = (prepared.whole or prepared).dataset.sample_ids
    arrays: dict[str, Tensor] = {POSITIONS: torch.tensor(part_rows(ids, part))}
    if (features := builder.features()) is not None:
        arrays |= dict(zip((FEATURES, ADV_FEATURES), features, strict=True))
    return {name: array.numpy() for name, array in arrays.items()}
