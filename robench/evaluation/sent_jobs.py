"""What goes to other processes of a cluster, and what they do with it: a part of one job."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robench.datasets import Dataset
from robench.devices import resolve_device, single_precision
from robench.evaluation.prepared_model import ONE_AT_A_TIME, PreparedModel, Settings
from robench.evaluation.runner import Listener, evaluate_model, prepare_for
from robench.execution import Progress
from robench.models.wrapper import RobenchModel
from robench.records import Suite
from robench.request import Part
from robench.results.store import Store
from robench.threat_models import ThreatModel

_BLOCK_BYTES = 64 * 2**20


class SentDataset(Dataset):
    """Samples in memory that is shared, and may not be written."""

    reads_alike = True

    def __init__(self, of: Dataset) -> None:
        super().__init__(
            name=of.name,
            split=of.split,
            sample_ids=of.sample_ids,
            labels=of.labels,
            class_names=of.class_names,
            input_shape=of.input_shape,
            preprocessing=of.preprocessing,
        )
        self.dark = of.dark
        self.__dict__["fingerprint"] = of.fingerprint
        self.__dict__["masks_fingerprint"] = of.masks_fingerprint
        self._masks = None if of.masks_fingerprint is None else of.masks(range(len(of)))
        self.block = max(1, _BLOCK_BYTES // (4 * int(np.prod(of.input_shape))))
        self.blocks: Sequence[Any] = ()
        """float32 (block, C, H, W), one after the other"""

    def _read(self, indices: list[int]) -> Tensor:
        found = np.empty((len(indices), *self.input_shape), np.float32)
        for row, index in enumerate(indices):
            found[row] = self.blocks[index // self.block][index % self.block]
        return torch.from_numpy(found)

    def _read_masks(self, indices: list[int]) -> Tensor | None:
        return None if self._masks is None else self._masks[torch.tensor(indices)]


def blocks_of(dataset: Dataset, size: int) -> Iterator[Any]:
    """Inputs of all samples, float32 (≤ size, C, H, W) arrays."""
    for start in range(0, len(dataset), size):
        yield dataset.batch(range(start, min(start + size, len(dataset)))).numpy()


@dataclass(frozen=True)
class Order:
    """What is to be done of what was sent."""

    token: str
    """Of the model, threat model and samples: equal where these are"""
    suite: Suite
    attack: str
    threat_model: ThreatModel
    settings: Settings
    device: str
    part: Part | None


class _Advance(Listener):
    def __init__(self, report: Progress) -> None:
        self._report = report

    def advanced(self, steps: int) -> None:
        self._report(steps)


_known: dict[str, tuple[RobenchModel, PreparedModel]] = {}
"""What this process prepared last"""


@single_precision()
def work(
    report: Progress, order: Order, model: RobenchModel, dataset: SentDataset, *blocks: Any
) -> dict[str, bytes]:
    """Run a part of a job, or all of it; the files of its record, by name."""
    settings = replace(order.settings, device=resolve_device(order.device), workers=1)
    if order.token not in _known:
        _known.clear()
        dataset.blocks = blocks
        model = model.to(settings.device)
        attacks = order.suite.for_model(order.threat_model.family, model.outputs)
        prepared = prepare_for(model, dataset, attacks, order.threat_model, settings)
        _known[order.token] = model, prepared
    model, prepared = _known[order.token]
    if not ONE_AT_A_TIME.isdisjoint(flag.name for flag in prepared.flags):
        _known.clear()  # the next one finds it as it was sent
    with tempfile.TemporaryDirectory(prefix="robench-") as folder:
        evaluate_model(
            model,
            prepared.dataset,
            order.suite,
            store=Store(folder),
            threat_model=order.threat_model,
            listener=_Advance(report),
            settings=settings,
            part=order.part,
            only=order.attack,
            prepared=prepared,
        )
        files = Path(folder).glob("**/records/*/*")
        return {path.name: path.read_bytes() for path in files}
