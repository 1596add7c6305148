"""What all attacks on a model start from: clean logits, the search's model, metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from robench import seeding
from robench.acceleration.model_choice import SearchChoice, choose_search_model
from robench.acceleration.search_models import SearchModel, SearchModels
from robench.attacks import build_attack
from robench.attacks.base import BatchAttack
from robench.attacks.losses import LOSSES, Loss, margin
from robench.datasets import Dataset
from robench.doctor import examine
from robench.errors import AttackError, ModelError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.queries import Queries
from robench.evaluation.sample_metrics import SampleMetrics
from robench.evaluation.samples import Samples
from robench.evaluation.settings import Settings
from robench.evaluation.worker_pool import survives_fork, worker_count
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec, Flag
from robench.threat_models import ThreatModel

_SHARD_BYTES = 512 * 2**20
_STATE_COPIES = 16  # tensors of the inputs' size that the largest attack state holds
_BATCH = 256  # for passes outside the search
_ONE_AT_A_TIME = {"randomised", "changing_state"}  # the doctor's names
_PROBE = 128  # samples that flags and the choice of precision are based on


@dataclass(frozen=True)
class PreparedModel:
    """What all attacks on a model start from. It is their source of samples.

    Attributes:
        dataset: all samples, n of them.
        device: where the model is.
        logits: clean, float32 (n, K) on the CPU.
        errors: sample → why the model gave no logits for it.
        rows: the correctly classified samples, int64 (m,); the positions that attacks go by.
        keys: int64 (n,), :func:`robench.seeding.sample_keys`.
        flags: what the doctor saw on some of the samples.
        adjudicator: judges with the original model.
        choice: what searches run on.
        workers: searches side by side.
        shard_size: samples that are on the device at a time.
        metrics: of the correctly classified samples.
    """

    dataset: Dataset
    device: torch.device
    logits: Tensor
    errors: dict[int, str]
    rows: Tensor
    keys: Tensor
    flags: tuple[Flag, ...]
    adjudicator: Adjudicator
    choice: SearchChoice
    workers: int
    shard_size: int
    metrics: SampleMetrics

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def models(self) -> SearchModels:
        """What searches run on, by the kind of attack."""
        return self.choice.models

    @property
    def batch_size(self) -> int:
        """Inputs of all searches together at a time."""
        return self.choice.batch_size

    @property
    def predictions(self) -> Tensor:
        """Clean ones, int64 (n,); without meaning where there are errors."""
        return self.logits.argmax(dim=1)

    def load(self, rows: Tensor) -> Samples:
        """Samples for positions among the correctly classified, on the device."""
        chosen = self.rows[rows]
        return Samples(
            self.dataset.batch(chosen).to(self.device),
            self.dataset.labels[chosen].to(self.device),
            self.logits[chosen].to(self.device),
            self.keys[chosen].to(self.device),
        )

    def keys_of(self, rows: Tensor) -> Tensor:
        """int64 (n′,) on the CPU: keys of positions among the correctly classified."""
        return self.keys[self.rows[rows]]

    def prediction(self, row: int) -> int | None:
        """The clean prediction of a sample, None where the logits are not finite."""
        return None if row in self.errors else int(self.logits[row].argmax())

    def margin(self, row: int) -> float | None:
        """The clean margin of a sample, None where the logits are not finite."""
        if row in self.errors:
            return None
        return float(margin(self.logits[row, None], self.dataset.labels[row, None]))


def prepare_model(
    model: RobenchModel,
    dataset: Dataset,
    threat_model: ThreatModel,
    settings: Settings,
    planned: Sequence[AttackSpec],
) -> PreparedModel:
    """Classify the samples, examine the model, and choose what searches run on: minutes, at times.

    Args:
        model: the model under evaluation; moved to the device.
        dataset: the samples.
        threat_model: the ball.
        settings: device, precision, batch size, workers and seed.
        planned: the attacks that are to come, by whose cost the search's model is chosen.

    Raises:
        ModelError: logits of another width than the card says, or none that are finite.
        UsageError: the precision that was asked for does not agree with the original.
    """
    device = settings.device
    model = model.to(device)
    batch_size = min(settings.batch_size or _BATCH, _BATCH)
    logits, errors, probe = _classify(model, dataset, device, batch_size)
    labels = dataset.labels[probe.rows].to(device)
    known = logits[probe.rows].to(device)
    found = examine(model, probe.inputs, labels, brief=True, logits=known)
    flags = [finding.flag() for finding in found]
    correct = logits.argmax(dim=1) == dataset.labels
    correct[list(errors)] = False
    rows = correct.nonzero().squeeze(1)
    # Passes that leave something behind, or draw from one stream, must not overlap.
    alone = bool({flag.name for flag in flags} & _ONE_AT_A_TIME)
    workers = 1 if alone else worker_count(device, settings.workers)
    choice = choose_search_model(
        model,
        probe.inputs,
        labels,
        precision=settings.precision,
        threat_model=threat_model,
        batch_size=settings.batch_size,
        workers=workers,
        planned_passes=_planned_passes(planned, threat_model, model, len(rows)),
    )
    adjudicator = Adjudicator(model, threat_model, batch_size)
    if workers > 1 and choice.is_short and settings.workers is None:
        workers = 1
    every_pass = partial(_every_pass, adjudicator, choice.models, probe.inputs[:2], labels[:2])
    if workers > 1 and not survives_fork(every_pass):
        workers = 1
    sample_bytes = 4 * int(np.prod(dataset.input_shape))
    return PreparedModel(
        dataset=dataset,
        device=device,
        logits=logits,
        errors=errors,
        rows=rows,
        keys=seeding.sample_keys(settings.seed, dataset.sample_ids),
        flags=tuple(flags),
        adjudicator=adjudicator,
        choice=choice,
        workers=workers,
        shard_size=max(64, _SHARD_BYTES // (_STATE_COPIES * sample_bytes)),
        metrics=SampleMetrics(model, dataset, rows, device, _BATCH),
    )


@dataclass(frozen=True)
class _Probe:
    """The first samples that the model has logits for, kept on the device."""

    rows: Tensor
    inputs: Tensor


def _classify(
    model: RobenchModel, dataset: Dataset, device: torch.device, batch_size: int
) -> tuple[Tensor, dict[int, str], _Probe]:
    """Clean logits float32 (n, K) on the CPU, and the samples that the model fails on."""
    guarded = Queries(SearchModel(model), model.num_classes, batch_size)
    parts: list[Tensor] = []
    errors: dict[int, str] = {}
    probe_rows, probe_inputs, wanted = list[Tensor](), list[Tensor](), _PROBE
    for rows in torch.split(torch.arange(len(dataset)), batch_size):
        inputs = dataset.batch(rows).to(device)
        guarded.reset(len(rows), device)
        parts.append(guarded.logits(inputs).cpu())
        errors |= {int(rows[i]): message for i, message in guarded.failures.items()}
        if wanted:
            good = torch.tensor([i for i in range(len(rows)) if i not in guarded.failures])
            good = good[:wanted].long()
            probe_rows.append(rows[good])
            probe_inputs.append(inputs[good.to(device)])
            wanted -= len(good)
    if len(errors) == len(dataset):
        raise ModelError(
            f"no clean input can be evaluated: {errors[0]}",
            where=model.summary.id,
            hint="Check the input range, the channels and forward.output in its card",
        )
    return torch.cat(parts), errors, _Probe(torch.cat(probe_rows), torch.cat(probe_inputs))


def _planned_passes(
    planned: Sequence[AttackSpec], threat_model: ThreatModel, model: RobenchModel, count: int
) -> int:
    """Search steps for ``count`` samples that survive everything."""
    passes = 0
    for spec in planned:
        for index, stage in enumerate(spec.for_outputs(model.outputs)):
            attack = build_attack(stage, threat_model)
            if isinstance(attack, BatchAttack):
                continue
            samples = count
            if spec.audit is not None and index >= spec.audit.first_stage:
                samples = spec.audit.sample_size(count)
            try:
                passes += samples * attack.searches(model.num_classes) * attack.most_steps()
            except AttackError:  # not defined for so few classes, and skipped later
                continue
    return passes


def _every_pass(
    adjudicator: Adjudicator, models: SearchModels, inputs: Tensor, labels: Tensor
) -> None:
    """Each kind of pass that a search makes."""
    adjudicator.logits(inputs)
    for model in models.different():
        model.logits(inputs)
        model.gradient(inputs, Loss(LOSSES["ce"], labels, labels))
