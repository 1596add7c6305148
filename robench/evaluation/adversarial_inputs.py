"""The adversarial inputs of a job: a tensor, or a file where a tensor would fill the memory."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from robench.results.arrays import Array, ArrayRows
from robench.results.progress import RowFile

_IN_MEMORY = 256 * 2**20
"""Bytes up to which everything stays in memory, and in the snapshots"""


class ReadInputs(Protocol):
    """Inputs by int64 positions, wherever they are."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """(k,) → (k, C, H, W) on the CPU."""
        ...


class Inputs(ReadInputs, Protocol):
    """What tensors and files of inputs have in common: rows by int64 positions."""

    def __setitem__(self, rows: Tensor, values: Tensor, /) -> None:
        """(k,), (k, C, H, W) on the CPU."""
        ...


class FileInputs:
    """Inputs in a file that outlives the process, so that snapshots need not hold them.

    What was written after the last snapshot is written again, and the same, when the job goes on.
    """

    def __init__(self, file: RowFile) -> None:
        self.file = file

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.from_numpy(self.file.read(rows.tolist()))

    def __setitem__(self, rows: Tensor, values: Tensor) -> None:
        self.file.write(rows.tolist(), values.numpy())


class PickedInputs:
    """Some of the inputs, at int64 positions (k,) among them."""

    def __init__(self, inputs: ReadInputs, picked: Tensor) -> None:
        self._inputs = inputs
        self._picked = picked

    def __len__(self) -> int:
        return len(self._picked)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self._inputs[self._picked[rows]]


class KeptInputs:
    """Those of the inputs that a record kept, float32 (n, C, H, W), at ``chosen`` positions."""

    def __init__(self, rows: Array | ArrayRows, chosen: Sequence[int]) -> None:
        self._rows = rows
        self._chosen = torch.tensor(chosen, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, rows: Tensor) -> Tensor:
        read = self._rows[self._chosen[rows].numpy()]
        return torch.from_numpy(np.ascontiguousarray(read, np.float32))


def room_for(count: int, shape: tuple[int, ...], open_file: Callable[[], RowFile]) -> Inputs:
    """Room for ``count`` inputs of a shape (C, H, W), all zero, or as an interrupted job left them.

    In memory, or in a file that ``open_file`` opens if they are too many for it.

    Raises:
        StoreError: the file cannot be opened.
    """
    if 4 * count * math.prod(shape) <= _IN_MEMORY:
        return torch.zeros(count, *shape)
    return FileInputs(open_file())
