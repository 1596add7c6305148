"""Which samples of a model no perturbation in the ball can break."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import torch

from robench.bounds.affine_graph import AffineGraph
from robench.bounds.propagation import SLACK, lowest_margins
from robench.datasets import Dataset
from robench.models.wrapper import RobenchModel
from robench.records import BoundedSample, Bounds, BoundsMethod, bounds_key
from robench.reporting.best_known import BestKnown
from robench.results import Store, StoredRecord
from robench.results.bounds import check_bounds, find_bounds, write_bounds
from robench.results.finds import SamplesInBall, repeats
from robench.statistics import Interval, wilson
from robench.threat_models import ThreatModel

_BATCH = 20
"""Samples at a time: linear bounds hold some sixty copies of every feature of each."""


def stored_bounds(
    model: RobenchModel,
    dataset: Dataset,
    threat: ThreatModel,
    method: BoundsMethod,
    store: Store,
    records: Sequence[StoredRecord],
) -> Bounds:
    """The store's bounds of this job, or those that are made now and kept, if the ``records`` do not
    contradict them.

    Raises:
        ModelError: as :func:`verify`.
        ContradictionError: a sample is verified and broken at once.
        StoreError: they cannot be written.
    """
    key = bounds_key(model.summary.fingerprint, dataset.spec().fingerprint, threat, method)
    found = find_bounds(store, key)
    made = verify(model, dataset, threat, method) if found is None else found
    check_bounds(records, [made])
    if found is None:
        write_bounds(store, made)
    # The same job may have been done under other names.
    return made.model_copy(update={"model": model.summary, "dataset": dataset.spec()})


def verify(
    model: RobenchModel, dataset: Dataset, threat: ThreatModel, method: BoundsMethod
) -> Bounds:
    """Bound every sample's margin from below.

    On the CPU, in float64. A sample is verified if its lowest margin exceeds :data:`SLACK` times
    its largest logit.

    Raises:
        ModelError: the network has an operation without known bounds.
    """
    started = time.perf_counter()
    network = copy.deepcopy(model).cpu().double()
    size = min(_BATCH, len(dataset))
    graph: AffineGraph | None = None
    samples: list[BoundedSample] = []
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
            columns = (labels, own - rival, lowest, lowest > enough)
            for row, *of_it in zip(part.tolist(), *(c.tolist() for c in columns), strict=False):
                samples.append(_sample(dataset.sample_ids[row], *of_it))
    data = dataset.spec()
    return Bounds(
        key=bounds_key(model.summary.fingerprint, data.fingerprint, threat, method),
        model=model.summary,
        dataset=data,
        threat_model=threat,
        method=method,
        samples=tuple(samples),
        seconds=time.perf_counter() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _sample(
    sample_id: str, label: int, clean_margin: float, lowest_margin: float, verified: bool
) -> BoundedSample:
    return BoundedSample(
        sample_id=sample_id,
        label=label,
        clean_margin=clean_margin if math.isfinite(clean_margin) else None,
        lowest_margin=lowest_margin if math.isfinite(lowest_margin) else None,
        verified=verified and math.isfinite(lowest_margin),
    )


def verified_acc(bounds: Bounds) -> Interval:
    """Percent of the samples that are verified, with the 95 % Wilson interval."""
    return _share(sum(sample.verified for sample in bounds.samples), bounds)


def clean_acc(bounds: Bounds) -> Interval:
    """Percent classified correctly, with the 95 % Wilson interval."""
    return _share(int(_correct(bounds).sum()), bounds)


def best_known_acc(bounds: Bounds, records: Sequence[StoredRecord]) -> Interval | None:
    """Percent that is classified correctly and that no record, whatever its goal, has broken in the
    ball, with the 95 % Wilson interval; None: no record is of these samples in this ball."""
    of_it = [
        stored
        for stored in records
        if stored.record.model.fingerprint == bounds.model.fingerprint
        and stored.record.dataset.fingerprint == bounds.dataset.fingerprint
        and stored.record.threat_model.norm == bounds.threat_model.norm
        and stored.record.threat_model.eps == bounds.threat_model.eps
    ]
    if not of_it or not all(repeats(stored.record) for stored in of_it):
        return None
    found = BestKnown(records).found(SamplesInBall.of_bounds(bounds))
    return _share(int((_correct(bounds) & ~found).sum()), bounds)


def _correct(bounds: Bounds) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([(sample.clean_margin or 0.0) > 0 for sample in bounds.samples])


def _share(hits: int, bounds: Bounds) -> Interval:
    return wilson(hits, len(bounds.samples)).scaled(100)
