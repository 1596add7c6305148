"""What torch draws for a batch, drawn row by row: torch's own operations, with a seed for each row.

The hook beneath all of torch's operations is no settled part of its interface; where it is gone, nothing can
be imported from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_STRIDE = 0x9E3779B97F4A7C15
_BITS = (1 << 64) - 1


class DrawsByRow(TorchDispatchMode):
    """Has what torch draws for N inputs drawn row by row.

    Args:
        keys: N of them, 64 bits each; the t-th tensor of N rows that is drawn has seeds of its own.
        seed: of what is drawn after it for all inputs together.
        device: where the inputs are.
    """

    def __init__(self, keys: Sequence[int], seed: int, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys = keys
        self.seed = seed
        self.device = device
        self.turn = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Compiled code does not come here; to see to that, torch would load its compiler, which takes
        seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An operation: made as it is, or for each row."""
        kwargs = kwargs or {}
        if not self._is_of_rows(func, args, kwargs):
            return func(*args, **kwargs)
        self.turn += 1
        drawn = []
        for row, key in enumerate(self.keys):
            self._seed(key)
            mine = {name: self._row(value, row) for name, value in kwargs.items()}
            drawn.append(func(*(self._row(value, row) for value in args), **mine))
        # What is drawn for all of them together knows nothing of how many they are.
        self._seed(self.seed)
        if func._schema.is_mutable:  # the rows were views of it
            return kwargs.get("out", args[0])
        if isinstance(drawn[0], Tensor):
            return torch.cat(drawn)
        return tuple(torch.cat(column) for column in zip(*drawn, strict=True))

    def _is_of_rows(self, func: Any, args: Any, kwargs: Any) -> bool:
        # Fused attention says that it draws, and without dropout does not.
        if torch.Tag.nondeterministic_seeded not in func.tags or "attention" in func.name():
            return False
        if kwargs.get("generator") is not None:
            return False
        return any(self._has_rows(value) for value in (*args, *kwargs.values()))

    def _has_rows(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return value.dim() > 0 and len(value) == len(self.keys)
        is_size = isinstance(value, (list, tuple)) and bool(value)
        return is_size and all(type(n) is int for n in value) and value[0] == len(self.keys)

    def _row(self, value: Any, row: int) -> Any:
        if not self._has_rows(value):
            return value
        return value[row : row + 1] if isinstance(value, Tensor) else [1, *value[1:]]

    def _seed(self, key: int) -> None:
        seed = seed_of(key, self.turn)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)


def seed_of(key: int, turn: int) -> int:
    """What torch's generator begins at for a row's ``turn``-th draw, counted from 1; 64 bits."""
    return (key + turn * _STRIDE) & _BITS
