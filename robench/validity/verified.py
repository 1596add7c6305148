"""Which samples of a model no perturbation in the ball can break, and whether records agree."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from robench.bounds.affine_graph import AffineGraph
from robench.bounds.propagation import SLACK, Method, lowest_margins
from robench.datasets import Dataset
from robench.errors import RobenchError
from robench.models.wrapper import RobenchModel
from robench.reporting.best_known import BestKnown
from robench.reporting.model_results import ModelResult, collect
from robench.results import StoredRecord
from robench.statistics import Interval, wilson
from robench.threat_models import ThreatModel

_BATCH = 20
"""Samples at a time: linear bounds hold some sixty copies of every feature of each."""


class ContradictionError(RobenchError):
    """A sample is verified and broken at once: a fault of the bounds or of the adjudicator."""


@dataclass(frozen=True)
class Verified:
    """Bounds of one model's samples.

    Attributes:
        table: a row a sample: ``sample_id``, ``label``, ``clean_margin``, ``lowest_margin`` (no
            input in the ball has a lower one) and ``verified``.
    """

    model: RobenchModel
    dataset: Dataset
    threat: ThreatModel
    method: Method
    table: pd.DataFrame

    @property
    def verified_acc(self) -> Interval:
        """Percent of the samples that are verified, with the 95 % Wilson interval."""
        return wilson(int(self.table["verified"].sum()), len(self.table)).scaled(100)

    @property
    def clean_acc(self) -> Interval:
        """Percent classified correctly, with the 95 % Wilson interval."""
        return wilson(int((self.table["clean_margin"] > 0).sum()), len(self.table)).scaled(100)

    def attacked(self, records: Iterable[StoredRecord]) -> Interval | None:
        """Percent that no record has broken in this very ball; None: no record is of it.

        Raises:
            ContradictionError: a sample that is verified was broken in this ball or a smaller one.
        """
        known = list(records)
        best = BestKnown(known)
        found: Interval | None = None
        for result in collect(known):
            if not self._is_of(result):
                continue
            robust = best.robust(result)
            if robust is None:
                continue
            table = self.table.set_index("sample_id").loc[list(result.sample_ids)]
            both = table["verified"].to_numpy(np.bool_) & result.clean_correct & ~robust
            if both.any():
                name = result.sample_ids[both.argmax()]
                raise ContradictionError(
                    f"{both.sum()} samples are verified and broken at once, first {name!r} under "
                    f"{result.threat_model}",
                    where=result.model.id,
                    hint="This is a fault of robench: report it with the results folder",
                )
            if result.threat_model == self.threat:
                found = best.robust_acc(result)
        return found

    def _is_of(self, result: ModelResult) -> bool:
        return (
            result.model.fingerprint == self.model.summary.fingerprint
            and result.group.fingerprint == self.dataset.fingerprint
            and result.threat_model.norm == self.threat.norm
            and result.threat_model.eps <= self.threat.eps
        )


def verify(model: RobenchModel, dataset: Dataset, threat: ThreatModel, method: Method) -> Verified:
    """Bound every sample's margin from below.

    On the CPU, in float64. A sample is verified if its lowest margin exceeds :data:`SLACK` times
    its largest logit.

    Raises:
        ModelError: the network has an operation without known bounds.
    """
    network = copy.deepcopy(model).cpu().double()
    size = min(_BATCH, len(dataset))
    graph: AffineGraph | None = None
    rows: list[pd.DataFrame] = []
    with torch.no_grad():
        for part in torch.split(torch.arange(len(dataset)), size):
            # The graph is of one shape: the last batch is filled up with its first sample.
            full = torch.cat([part, part[:1].expand(size - len(part))])
            inputs, labels = dataset.batch(full).cpu().double(), dataset.labels[full].cpu()
            graph = graph or AffineGraph(network, inputs)
            logits = network(inputs)
            own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
            rival = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(dim=1)
            lowest = lowest_margins(graph, inputs, labels, threat, method).amin(dim=1)
            enough = SLACK * logits.abs().amax(dim=1)
            columns = {
                "sample_id": [dataset.sample_ids[row] for row in part.tolist()],
                "label": labels.tolist()[: len(part)],
                "clean_margin": (own - rival).tolist()[: len(part)],
                "lowest_margin": lowest.tolist()[: len(part)],
                "verified": (lowest > enough).tolist()[: len(part)],
            }
            rows.append(pd.DataFrame(columns))
    return Verified(model, dataset, threat, method, pd.concat(rows, ignore_index=True))
