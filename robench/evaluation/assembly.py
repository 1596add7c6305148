"""Puts a record together from what the attacks did, the verdicts and the metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robench.evaluation.cascade_state import CascadeState
from robench.evaluation.clean_pass import CleanPass
from robench.evaluation.environment import describe_environment, peak_memory_mib
from robench.evaluation.measures import summarise
from robench.evaluation.panels import half_broken, panel_of
from robench.evaluation.settings import Settings
from robench.models.wrapper import RobenchModel
from robench.records import (
    AttackSpec,
    Cost,
    DatasetSpec,
    EvaluationRecord,
    Flag,
    Outcome,
    SampleOutcome,
)
from robench.results.arrays import Rows
from robench.threat_models import ThreatModel

__all__ = ["Assembly"]

_PANEL_SAMPLES = 8
_ROWS_AT_A_TIME = 32


class Assembly:
    """One job's record, table and arrays.

    Args:
        model: the model under evaluation.
        dataset: which samples were used.
        threat_model: the ball.
        attack: the specification that was run.
        clean: the clean pass that it started from.
        attacked: what it did to the correctly classified samples.
    """

    def __init__(
        self,
        model: RobenchModel,
        dataset: DatasetSpec,
        threat_model: ThreatModel,
        attack: AttackSpec,
        clean: CleanPass,
        attacked: CascadeState,
    ) -> None:
        self.model = model
        self.dataset = dataset
        self.threat_model = threat_model
        self.attack = attack
        self.clean = clean
        self.attacked = attacked
        self.shown = attacked.shown
        self.values = clean.measures.values(attacked.adv_inputs, self.shown)
        self._position = {row: i for i, row in enumerate(clean.rows.tolist())}

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """The verdict on every sample of the data set."""
        outcomes = [Outcome.CLEAN_ERROR] * self.dataset.n
        for row in self.clean.errors:
            outcomes[row] = Outcome.ERRORED
        for row, i in self._position.items():
            if i in self.attacked.errors:
                outcomes[row] = Outcome.ERRORED
            elif int(self.attacked.stage[i]) >= 0:
                outcomes[row] = Outcome.BROKEN
            else:
                outcomes[row] = Outcome.SURVIVED
        return outcomes

    def _where(self, outcome: Outcome) -> Tensor:
        """bool (m,) over the correctly classified samples."""
        return torch.tensor([self.outcomes[row] == outcome for row in self._position]).bool()

    def samples(self) -> list[SampleOutcome]:
        """One row for every sample, in the data set's order."""
        return [self._sample(row) for row in range(self.dataset.n)]

    def _sample(self, row: int) -> SampleOutcome:
        found: dict[str, Any] = {"message": self.clean.errors.get(row)}
        i = self._position.get(row)
        if i is not None:
            found = {
                "forwards": int(self.attacked.forwards[i]),
                "backwards": int(self.attacked.backwards[i]),
                "message": self.attacked.errors.get(i),
            }
            if i not in self.attacked.errors:
                found |= self._found(i)
        data = self.clean.dataset
        return SampleOutcome(
            sample_id=data.sample_ids[row],
            label=int(data.labels[row]),
            outcome=self.outcomes[row],
            clean_prediction=self.clean.prediction(row),
            clean_margin=self.clean.margin(row),
            **found,
        )

    def _found(self, i: int) -> dict[str, Any]:
        names = self.attacked.stage_names
        stage = int(self.attacked.stage[i])
        values = {name: float(column[i]) for name, column in self.values.items()}
        if math.isfinite(smallest := float(self.attacked.found_size[i])):
            values["minimum_size"] = smallest
        found: dict[str, Any] = {"values": values}
        if bool(self.shown[i]):
            found |= {
                "adv_prediction": int(self.attacked.prediction[i]),
                "adv_margin": float(self.attacked.margin[i]),
                "broken_by": names[stage] if stage >= 0 else None,
                "perturbation_size": float(self.attacked.size[i]),
            }
        return found

    def record(
        self,
        key: str,
        settings: Settings,
        foreign: dict[str, str],
        flags: Sequence[Flag],
        seconds: float,
    ) -> EvaluationRecord:
        """The record under its key."""
        attacked, clean = self.attacked, self.clean
        return EvaluationRecord(
            key=key,
            model=self.model.summary,
            dataset=self.dataset,
            threat_model=self.threat_model,
            attack=self.attack,
            seed=settings.seed,
            precision=settings.precision,
            foreign=foreign,
            counts={outcome: self.outcomes.count(outcome) for outcome in Outcome},
            stages=tuple(attacked.stages) if len(attacked.stages) > 1 else (),
            audit=attacked.audit,
            flags=(*flags, *clean.measures.flags),
            metrics=summarise(
                self.values, self._where(Outcome.BROKEN), self._where(Outcome.SURVIVED)
            ),
            attention_method=clean.measures.description,
            class_robust_acc=self._by_class(),
            cost=Cost(
                forwards=int(attacked.forwards.sum()),
                backwards=int(attacked.backwards.sum()),
                seconds=seconds,
                samples_per_second=self.dataset.n / seconds if seconds > 0 else None,
                peak_memory_mib=peak_memory_mib(settings.device),
            ),
            environment=describe_environment(
                settings.device, clean.models.search.description, clean.batch_size
            ),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _by_class(self) -> dict[str, float]:
        robust = torch.tensor([outcome == Outcome.SURVIVED for outcome in self.outcomes])
        labels = self.clean.dataset.labels
        members = {name: labels == i for i, name in enumerate(self.dataset.class_names)}
        return {
            name: 100 * float(robust[rows].double().mean())
            for name, rows in members.items()
            if bool(rows.any())
        }

    def adversarial(self) -> Rows:
        """Every sample's adversarial input (n, C, H, W), the clean one where there is none."""
        return Rows((self.dataset.n, *self.clean.dataset.input_shape), self._adversarial_parts())

    def _adversarial_parts(self) -> Iterator[NDArray[np.float32]]:
        position = torch.full((self.dataset.n,), -1)
        shown = self.shown.nonzero().squeeze(1)
        position[self.clean.rows[shown]] = shown
        for rows in torch.split(torch.arange(self.dataset.n), _ROWS_AT_A_TIME):
            part = self.clean.dataset.batch(rows)
            found = position[rows] >= 0
            part[found] = self.attacked.adv_inputs[position[rows][found]]
            yield part.numpy()

    def panel(self) -> dict[str, NDArray[Any]]:
        """A few samples with their maps for the plot, half of them broken if there are so many."""
        few = half_broken(
            self._where(Outcome.BROKEN), self._where(Outcome.SURVIVED) & self.shown, _PANEL_SAMPLES
        )
        panel = panel_of(
            self.clean.measures,
            few,
            self.attacked.adv_inputs,
            self.clean.predictions[self.clean.rows],
            self.attacked.prediction,
        )
        return {} if panel is None else panel.to_arrays()
