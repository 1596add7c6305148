"""What all attacks on a model start from: clean logits, the search's model, metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from robench import seeding
from robench.acceleration.model_choice import choose_search_model
from robench.acceleration.search_models import EagerModel
from robench.attacks import build_attack
from robench.attacks.base import AttackKind, BatchAttack
from robench.attacks.losses import LOSSES, Loss, margin
from robench.datasets import Dataset
from robench.doctor import brief_flags
from robench.errors import AttackError, ModelError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.queries import Queries
from robench.evaluation.sample_metrics import SampleMetrics
from robench.evaluation.samples import Samples
from robench.evaluation.settings import Settings
from robench.evaluation.worker_pool import survives_fork, worker_count
from robench.models.wrapper import RobenchModel
from robench.records import AttackSpec
from robench.threat_models import ThreatModel

__all__ = ["CleanPass"]

_SHARD_BYTES = 512 * 2**20
_STATE_COPIES = 16  # tensors of the inputs' size that the largest attack state holds
_BATCH = 256  # for passes outside the search
_ONE_AT_A_TIME = {"randomised", "changing_state"}  # the doctor's names
_PROBE = 128  # samples that flags and the choice of precision are based on


class CleanPass:
    """What all attacks on a model start from: clean logits, the search's model, metrics.

    It is the cascade's source of samples; its rows are the correctly classified ones.

    Args:
        model: the model under evaluation; moved to the device.
        dataset: the samples.
        threat_model: the ball.
        settings: device, precision, batch size and seed.
        planned: the attacks that are to come, by whose cost the search's model is chosen.

    Raises:
        ModelError: logits of another width than the card says, or none that are finite.
    """

    def __init__(
        self,
        model: RobenchModel,
        dataset: Dataset,
        threat_model: ThreatModel,
        settings: Settings,
        planned: Sequence[AttackSpec],
    ) -> None:
        self.dataset = dataset
        self.device = settings.device
        model = model.to(self.device)
        sample_bytes = 4 * int(np.prod(dataset.input_shape))
        self.shard_size = max(64, _SHARD_BYTES // (_STATE_COPIES * sample_bytes))
        wanted = settings.batch_size
        self.adjudicator = Adjudicator(model, threat_model, min(wanted or _BATCH, _BATCH))
        self.errors: dict[int, str] = {}
        self.logits = self._clean_logits(model, min(wanted or _BATCH, _BATCH))
        if len(self.errors) == len(dataset):
            raise ModelError(
                f"no clean input can be evaluated: {self.errors[0]}",
                where=model.summary.id,
                hint="Check the input range, the channels and forward.output in its card",
            )
        finite = torch.ones(len(dataset), dtype=torch.bool)
        finite[list(self.errors)] = False
        self.predictions = self.logits.argmax(dim=1)
        self.rows = (finite & (self.predictions == dataset.labels)).nonzero().squeeze(1)
        self.keys = seeding.sample_keys(settings.seed, dataset.sample_ids)
        probe = finite.nonzero().squeeze(1)[:_PROBE]
        inputs = dataset.batch(probe).to(self.device)
        labels = dataset.labels[probe].to(self.device)
        self.flags = brief_flags(model, inputs, labels, self.logits[probe].to(self.device))
        # Passes that leave something behind, or draw from one stream, must not overlap.
        together = bool({flag.name for flag in self.flags} & _ONE_AT_A_TIME)
        workers = 1 if together else worker_count(self.device, settings.workers)
        steps = _planned_steps(planned, threat_model, model, len(self.rows))
        choice = choose_search_model(
            model,
            inputs,
            labels,
            precision=settings.precision,
            threat_model=threat_model,
            batch_size=wanted,
            workers=workers,
            planned_passes=steps.total(),
        )
        self.models = choice.models
        self.batch_size = choice.batch_size
        if workers > 1 and choice.is_short and settings.workers is None:
            workers = 1
        if workers > 1 and not survives_fork(partial(self._every_pass, inputs[:2], labels[:2])):
            workers = 1
        self.workers = workers
        self.metrics = SampleMetrics(model, dataset, self.rows, self.device, _BATCH)

    def _every_pass(self, inputs: Tensor, labels: Tensor) -> None:
        """Each kind of pass that a search makes."""
        self.adjudicator.logits(inputs)
        for model in self.models.different():
            model.logits(inputs)
            model.gradient(inputs, Loss(LOSSES["ce"], labels, labels))

    def _clean_logits(self, model: RobenchModel, batch_size: int) -> Tensor:
        """float32 (n, K) on the CPU; samples that the model fails on are noted as errors."""
        guarded = Queries(EagerModel(model), model.num_classes, batch_size)
        parts = []
        for rows in torch.split(torch.arange(len(self.dataset)), batch_size):
            guarded.reset(len(rows), self.device)
            parts.append(guarded.logits(self.dataset.batch(rows).to(self.device)).cpu())
            for position, message in guarded.failures.items():
                self.errors[int(rows[position])] = message
        return torch.cat(parts)

    def __len__(self) -> int:
        return len(self.rows)

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
        """int64 (n′,): keys of positions among the correctly classified."""
        return self.keys[self.rows[rows]]

    def prediction(self, row: int) -> int | None:
        """The clean prediction, None where the logits are not finite."""
        return None if row in self.errors else int(self.predictions[row])

    def margin(self, row: int) -> float | None:
        """The clean margin, None where the logits are not finite."""
        if row in self.errors:
            return None
        return float(margin(self.logits[row, None], self.dataset.labels[row, None]))


def _planned_steps(
    planned: Sequence[AttackSpec], threat_model: ThreatModel, model: RobenchModel, count: int
) -> Counter[AttackKind]:
    """Search steps for ``count`` samples that survive everything, by the attacks' kind."""
    steps: Counter[AttackKind] = Counter()
    for spec in planned:
        for index, stage in enumerate(spec.for_outputs(model.outputs)):
            attack = build_attack(stage, threat_model)
            if isinstance(attack, BatchAttack):
                continue
            audit = spec.audit
            samples = count
            if audit is not None and index >= audit.first_stage:
                samples = audit.sample_size(count)
            try:
                steps[attack.kind] += samples * attack.ranks(model.num_classes) * attack.steps()
            except AttackError:  # not defined for so few classes, and skipped later
                continue
    return steps
