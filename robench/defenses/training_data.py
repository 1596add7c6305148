"""Training samples as steps need them: shuffled, augmented, and drawn by class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from robench import seeding
from robench.datasets import Dataset, load_training_splits
from robench.defenses.settings import TrainingSettings
from robench.errors import TrainingError, UsageError

_RESIDENT_BYTES = 4 << 30
"""A set up to this size is kept on the device, as float32; a larger one is read as it goes."""

_PROBE = 4

_ORDER, _SHIFT, _DRAW = (seeding.tag(name) for name in ("order", "shift", "draw"))


@dataclass(frozen=True)
class TrainingSplits:
    """The two parts of a run's data; the test split is never among them.

    Args:
        train: what the network learns from.
        validation: what chooses the checkpoint; ``robench.datasets.hold_out`` makes one.
        source: name, folder or file that gives both again; None: nothing does.

    Raises:
        UsageError: they share samples, or differ in classes or input shape.
    """

    train: Dataset
    validation: Dataset
    source: str | None = None

    def __post_init__(self) -> None:
        if self.source is not None:
            return  # parted by load_training_splits
        if set(self.train.sample_ids) & set(self.validation.sample_ids):
            raise UsageError("training and validation data share samples")
        first, second = ((d.num_classes, d.input_shape) for d in (self.train, self.validation))
        if first != second:
            raise UsageError("training and validation data differ in classes or input shape")

    @property
    def probe(self) -> Tensor:
        """A few training inputs (N, C, H, W), to see whether a recipe can work with a network."""
        return self.train.batch(range(min(_PROBE, len(self.train))))

    @classmethod
    def load(
        cls, source: str | Path, *, root: str | Path | None = None, download: bool = False
    ) -> TrainingSplits:
        """The splits of ``source``, as :func:`~robench.datasets.load_training_splits` has them.

        Raises:
            UnknownNameError, DataError, UsageError: as that function.
        """
        splits = load_training_splits(source, root=root, download=download)
        return cls(*splits, source=str(source))


@dataclass(frozen=True)
class Batch:
    """One step's samples.

    Args:
        inputs: float32 (N, C, H, W) in [0, 1], augmented.
        labels: int64 (N,).
        keys: int64 (N,), the samples' random keys for this epoch (:mod:`robench.seeding`).
    """

    inputs: Tensor
    labels: Tensor
    keys: Tensor


class TrainingData:
    """A data set's samples on a device, with every random choice keyed by (seed, sample, epoch)."""

    def __init__(
        self, dataset: Dataset, settings: TrainingSettings, *, seed: int, device: torch.device
    ) -> None:
        self.dataset = dataset
        self._settings = settings
        self._device = device
        self._keys = seeding.sample_keys(seed, dataset.sample_ids)
        size = 4 * len(dataset) * math.prod(dataset.input_shape)
        everything = range(len(dataset))
        self._resident = dataset.batch(everything).to(device) if size <= _RESIDENT_BYTES else None
        self._by_class = dataset.labels.argsort(stable=True)
        self._class_sizes = dataset.labels.bincount(minlength=dataset.num_classes)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.dataset) // self._settings.batch_size

    def batches(self, epoch: int, index: int = 0, count: int = 1) -> Iterator[Batch]:
        """The batches of one epoch; with ``count`` processes, number ``index``'s share of each."""
        keys = seeding.derive(self._keys, epoch)
        order = seeding.derive(keys, _ORDER).argsort(stable=True)
        size = self._settings.batch_size
        for step in range(self.steps):
            chosen = order[step * size : (step + 1) * size][index::count]
            yield Batch(
                inputs=self._augmented(chosen, keys[chosen]),
                labels=self.dataset.labels[chosen].to(self._device),
                keys=keys[chosen].to(self._device),
            )

    def draw(self, classes: Tensor, keys: Tensor) -> Tensor:
        """For each wanted class one random training sample: (N,), (N,) → (N, C, H, W).

        Raises:
            TrainingError: a wanted class has no training samples.
        """
        wanted = classes.cpu()
        sizes = self._class_sizes[wanted]
        if not sizes.all():
            label = int(wanted[sizes == 0][0])
            raise TrainingError(
                f"class {self.dataset.class_names[label]!r} has no training samples",
                where=f"{self.dataset.name} ({self.dataset.split})",
            )
        numbers = seeding.uniform(seeding.derive(keys, _DRAW), (1,)).flatten().cpu().double()
        starts = self._class_sizes.cumsum(0) - self._class_sizes
        indices = self._by_class[starts[wanted] + (numbers * sizes).long()]
        return self._augmented(indices, seeding.derive(keys, _DRAW, 1).cpu())

    def _augmented(self, indices: Tensor, keys: Tensor) -> Tensor:
        if self._resident is None:
            inputs = self.dataset.batch(indices).to(self._device, non_blocking=True)
        else:
            inputs = self._resident[indices.to(self._device)]
        return shift_and_flip(
            inputs, keys.to(self._device), shift=self._settings.shift, flip=self._settings.flip
        )


def shift_and_flip(inputs: Tensor, keys: Tensor, *, shift: int, flip: bool) -> Tensor:
    """Move each of (N, C, H, W) by up to ``shift`` pixels both ways, zeros coming in, and mirror
    half of them left and right, at random by ``keys``, int64 (N,)."""
    if shift:
        n, _, height, width = inputs.shape
        moves = seeding.integers(seeding.derive(keys, _SHIFT), 2 * shift + 1, (2,))
        padded = torch.nn.functional.pad(inputs, (shift, shift, shift, shift))
        rows = moves[:, :1] + torch.arange(height, device=inputs.device)
        columns = moves[:, 1:] + torch.arange(width, device=inputs.device)
        sample = torch.arange(n, device=inputs.device)[:, None, None]
        inputs = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    if flip:
        mirrored = seeding.signs(seeding.derive(keys, _SHIFT, 1), (1,)).view(-1, 1, 1, 1) > 0
        inputs = torch.where(mirrored, inputs.flip(3), inputs)
    return inputs
