"""Puts a record together from what the attacks did, the verdicts and the metrics."""

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robench.attacks import build_attack
from robench.attacks.trials import Trials
from robench.evaluation.adversarial_inputs import PickedInputs, ReadInputs
from robench.evaluation.aims import by_sample
from robench.evaluation.cascade_state import CascadeState
from robench.evaluation.environment import describe_environment
from robench.evaluation.flags import errored_flags
from robench.evaluation.prepared_model import PreparedModel
from robench.evaluation.randomised import asked_draws, error_rates
from robench.evaluation.sample_metrics import SampleMetrics, summarise
from robench.records import (
    REACHED,
    AttackSpec,
    Cost,
    EvaluationRecord,
    Flag,
    Outcome,
    SampleOutcome,
)
from robench.records.corruptions import CORRECT
from robench.results import SamplePanel
from robench.results.arrays import Rows
from robench.results.tables import SampleRows

PANEL_SAMPLES = 8
"""Samples that a record shows"""
_PICTURE_CHANNELS = (1, 3)
_ROWS_AT_A_TIME = 32


class RecordBuilder:
    """One job's record, table and arrays.

    ``prepared`` is what the attack started from, ``attacked`` what it did to the samples that were due.
    """

    def __init__(self, attack: AttackSpec, prepared: PreparedModel, attacked: CascadeState) -> None:
        self.attack = attack
        self.prepared = prepared
        self.targets = prepared.threat_model.targets
        every = self.targets == "all"
        self.found = by_sample(attacked, prepared.aims, prepared.model.num_classes, every)
        self.attacked = attacked = self.found.state
        self.dataset = prepared.dataset
        self.passes_known, self.right = attacked.passes_known, prepared.right
        right = torch.zeros_like(attacked.shown)
        right[self.right] = True
        survived = torch.zeros_like(right)
        survived[attacked.survivors()] = True
        errored = torch.zeros_like(right)
        errored[list(attacked.errors)] = True
        # What was misclassified as it is neither broke nor survived anything.
        self.broken, self.survived = ~survived & ~errored & right, survived & right
        self.shown = attacked.shown & right
        self.adv_inputs = PickedInputs(self.found.adv_inputs, self.right)
        measured = prepared.metrics.values(self.adv_inputs, self.shown[self.right])
        self.values = {name: self._placed(column) for name, column in measured.items()}
        corrupted = prepared.threat_model.corrupted is not None
        tried = build_attack(attack, prepared.threat_model) if corrupted else None
        self.trials = tuple(tried.names) if isinstance(tried, Trials) else ()

    def _placed(self, column: Tensor) -> Tensor:
        """Values of what was classified correctly, among those of all that were due; NaN elsewhere."""
        placed = column.new_full((len(self.broken),), torch.nan)
        placed[self.right] = column
        return placed

    @cached_property
    def samples(self) -> SampleRows:
        """One row for every sample, in the data set's order."""
        return SampleRows.of(self._rows())

    def _rows(self) -> Iterator[SampleOutcome]:
        prepared, data = self.prepared, self.dataset
        place = {row: i for i, row in enumerate(prepared.rows.tolist())}
        clean = zip(prepared.predictions.tolist(), prepared.margins.tolist(), strict=True)
        for row, (prediction, margin) in enumerate(clean):
            yield SampleOutcome(
                sample_id=data.sample_ids[row],
                label=int(data.labels[row]),
                clean_prediction=None if row in prepared.errors else prediction,
                clean_margin=None if row in prepared.errors else margin,
                **self._with_rates(
                    row, self._not_attacked(row) if row not in place else self._found(place[row])
                ),
            )

    def _with_rates(self, row: int, found: dict[str, Any]) -> dict[str, Any]:
        """What is known of a sample, and, of random outputs, the shares of its draws that are wrong."""
        repeated = self.prepared.randomised
        if repeated is None:
            return found
        values = dict(found.get("values", {}))
        if row not in self.prepared.errors:
            values |= error_rates("clean", float(self.prepared.margins[row]), repeated.verdict)
        if (margin := found.get("adv_margin")) is not None:
            towards = self.targets is not None
            values |= error_rates("adv", margin, repeated.verdict, towards)
        return {**found, "values": values}

    def _not_attacked(self, row: int) -> dict[str, Any]:
        if str(int(self.dataset.labels[row])) == self.targets:
            return {"outcome": Outcome.AT_TARGET}
        message = self.prepared.errors.get(row)
        outcome = Outcome.CLEAN_ERROR if message is None else Outcome.ERRORED
        return {"outcome": outcome, "message": message}

    def _found(self, i: int) -> dict[str, Any]:
        """What is known of the ``i``-th correctly classified sample; without a verdict, no values."""
        attacked = self.attacked
        found: dict[str, Any] = {
            "outcome": Outcome.SURVIVED if self.survived[i] else Outcome.BROKEN,
            "forwards": int(attacked.forwards[i]) if self.passes_known[i] else None,
            "backwards": int(attacked.backwards[i]) if self.passes_known[i] else None,
        }
        found["values"] = self._aimed_at(i) | self._tried(i)
        if i in attacked.errors:
            return found | {"outcome": Outcome.ERRORED, "message": attacked.errors[i]}
        if not (self.broken[i] or self.survived[i]):
            return found | {"outcome": Outcome.CLEAN_ERROR}
        found["values"] |= {name: float(column[i]) for name, column in self.values.items()}
        if math.isfinite(smallest := float(attacked.found_size[i])):
            found["values"]["minimum_size"] = smallest
        if self.shown[i]:
            found["adv_prediction"] = int(attacked.prediction[i])
            found["adv_margin"] = float(attacked.margin[i])
            found["perturbation_size"] = float(attacked.size[i])
        if self.broken[i]:
            found["broken_by"] = attacked.stage_names[int(attacked.stage[i])]
        return found

    def _aimed_at(self, i: int) -> dict[str, float]:
        """Of an attack with targets: which one the row speaks of, and what came of each of several."""
        if self.targets is None:
            return {}
        values = {"target": float(self.found.targets[i])}
        if self.found.reached is not None:
            known = enumerate(self.found.reached[i].tolist())
            values |= {f"{REACHED}{c}": value for c, value in known if not math.isnan(value)}
        return values

    def _tried(self, i: int) -> dict[str, float]:
        """Of trials: whether the sample was classified correctly in each that means something."""
        if not self.trials:
            return {}
        margins = zip(self.trials, self.attacked.search_margins[0][i].tolist(), strict=True)
        return {f"{CORRECT}{name}": float(m > 0) for name, m in margins if m != math.inf}

    def record(
        self,
        key: str,
        foreign: dict[str, str],
        flags: Sequence[Flag],
        seconds: float,
        peak_memory_mib: float | None,
    ) -> EvaluationRecord:
        """The record under its key."""
        attacked, prepared = self.attacked, self.prepared
        counts = self.samples.counts()
        possible = [o for o in Outcome if o is not Outcome.AT_TARGET or o in counts]
        return EvaluationRecord(
            key=key,
            model=prepared.model.summary,
            dataset=self.dataset.spec(),
            threat_model=prepared.threat_model,
            attack=self.attack,
            seed=prepared.settings.seed,
            precision=prepared.settings.precision,
            draws=asked_draws(prepared.model, prepared.settings.draws),
            repeated_draws=prepared.randomised.record() if prepared.randomised else None,
            foreign=foreign,
            counts={outcome: counts.get(outcome, 0) for outcome in possible},
            stages=attacked.stages if len(attacked.stages) > 1 or self.attack.through else (),
            audit=attacked.audit,
            flags=(*flags, *errored_flags(self.samples), *prepared.metrics.methods.flags),
            metrics=summarise(self.values, self.broken, self.survived),
            attention_method=prepared.metrics.description,
            class_robust_acc=self._by_class(),
            slopes=prepared.given.slopes(),
            cost=Cost(
                forwards=sum(stage.forwards for stage in attacked.stages),
                backwards=sum(stage.backwards for stage in attacked.stages),
                seconds=seconds,
                samples_per_second=len(self.dataset) / seconds if seconds > 0 else None,
                peak_memory_mib=peak_memory_mib,
            ),
            environment=describe_environment(
                (prepared.settings.device, *prepared.settings.further_devices),
                prepared.models.search.description,
                prepared.choice.batch_size,
                prepared.choice.reason,
            ),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _by_class(self) -> dict[str, float]:
        robust = torch.zeros(len(self.dataset), dtype=torch.float64)
        robust[self.prepared.rows[self.survived]] = 100.0
        labels = self.dataset.labels
        members = {
            name: labels == i
            for i, name in enumerate(self.dataset.class_names)
            if str(i) != self.targets
        }
        return {name: float(robust[m].mean()) for name, m in members.items() if bool(m.any())}

    def adversarial(self) -> Rows:
        """Every sample's adversarial input (n, C, H, W), the clean one where there is none."""
        return Rows((len(self.dataset), *self.dataset.input_shape), self._adversarial_parts())

    def _adversarial_parts(self) -> Iterator[NDArray[np.float32]]:
        position = torch.full((len(self.dataset),), -1)
        shown = self.shown.nonzero().squeeze(1)
        position[self.prepared.rows[shown]] = shown
        for rows in torch.split(torch.arange(len(self.dataset)), _ROWS_AT_A_TIME):
            part = self.dataset.batch(rows)
            found = position[rows] >= 0
            part[found] = self.found.adv_inputs[position[rows][found]]
            yield part.numpy()

    def features(self) -> tuple[Tensor, Tensor] | None:
        """Those of the clean and the adversarial inputs that metrics are made of, (m, D) each."""
        # Where metrics could not be measured, nothing can.
        return self.prepared.metrics.features(self.adv_inputs) if self.values else None

    def panel(self, count: int = PANEL_SAMPLES) -> dict[str, NDArray[Any]]:
        """``count`` samples with their maps for the plot, half of them broken if there are so many."""
        right = self.right
        panel = panel_of(
            self.prepared.metrics,
            half_broken(self.broken[right], (self.survived & self.shown)[right], count),
            self.adv_inputs,
            self.prepared.predictions[self.prepared.rows[right]],
            self.attacked.prediction[right],
        )
        return {} if panel is None else panel.to_arrays()


def half_broken(broken: Tensor, survived: Tensor, count: int) -> Tensor:
    """Positions of ``count`` samples, half of them broken; fewer of a kind make room for the other.

    Of ``broken`` and ``survived``, bool (m,): int64 (k,), the broken ones first, each kind in order.

    >>> half_broken(torch.tensor([0, 1, 1, 0]).bool(), torch.tensor([1, 0, 0, 0]).bool(), 4)
    tensor([1, 2, 0])
    """
    fallen = broken.nonzero().squeeze(1)
    standing = survived.nonzero().squeeze(1)
    half = min(max(count // 2, count - len(standing)), len(fallen))
    return torch.cat((fallen[:half], standing[: count - half]))


def panel_of(
    metrics: SampleMetrics,
    positions: Tensor,
    adv_inputs: ReadInputs,
    clean_predictions: Tensor,
    adv_predictions: Tensor,
) -> SamplePanel | None:
    """The samples at some positions, int64 (k,) among the metrics' m rows, with their maps.

    The adversarial inputs are (m, C, H, W) in [0, 1] on the CPU, the predictions int64 (m,), -1 where
    unknown. None without samples, or where inputs are no pictures (channels other than 1 or 3).
    """
    data = metrics.dataset
    if len(positions) == 0 or data.input_shape[0] not in _PICTURE_CHANNELS:
        return None
    rows = metrics.rows[positions]
    inputs, labels = data.batch(rows), data.labels[rows]
    adversarial = adv_inputs[positions]
    maps = metrics.maps(inputs, labels)
    adv_maps = metrics.maps(adversarial, labels)
    none = torch.full((len(positions), 1, 1), torch.nan)
    return SamplePanel(
        sample_ids=tuple(data.sample_ids[row] for row in rows.tolist()),
        clean=inputs.movedim(1, -1).numpy(),
        adversarial=adversarial.movedim(1, -1).numpy(),
        clean_maps=(none if maps is None else maps).numpy(),
        adv_maps=(none if adv_maps is None else adv_maps).numpy(),
        labels=labels.numpy(),
        clean_predictions=clean_predictions[positions].numpy(),
        adv_predictions=adv_predictions[positions].numpy(),
    )
