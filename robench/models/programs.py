"""TorchScript and ``torch.export`` files: programs, which run only on the user's word."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import CheckpointError, UnsafeCheckpointError, one_line
from robench.models.checkpoints import CheckpointFormat, detect_format


class _Exported(nn.Module):
    """An exported graph, whose mode was fixed at export: it refuses ``train`` and ``eval``."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def train(self, mode: bool = True) -> _Exported:
        self.training = mode
        return self

    def forward(self, *inputs: Tensor, **arguments: Any) -> Any:
        return self.graph(*inputs, **arguments)


def load_program(path: Path, *, trust_pickle: bool = False) -> nn.Module:
    """Load a TorchScript or ``torch.export`` file on the CPU.

    Such a file is a program. It can call any of torch's operators, those that write files
    among them, so it loads only on the user's word. Export with a dynamic batch dimension:
    evaluation uses batches of several sizes.

    Raises:
        UnsafeCheckpointError: ``trust_pickle`` is not set.
        CheckpointError: the file is damaged, or is no program.
    """
    layout = detect_format(path)
    if not layout.is_program:
        raise CheckpointError(
            f"is a {layout} file: weights without a network",
            where=path,
            hint="Name the architecture",
        )
    if not trust_pickle:
        raise UnsafeCheckpointError(
            f"is a {layout} file: a program that would run",
            where=path,
            hint="Say --trust-pickle if you trust its maker",
        )
    try:
        with warnings.catch_warnings():
            # torch deprecates TorchScript, but the files are there.
            warnings.simplefilter("ignore")
            if layout is CheckpointFormat.TORCHSCRIPT:
                load: Callable[..., nn.Module] = torch.jit.load
                return load(path, map_location="cpu")
            return _Exported(torch.export.load(path).module())
    except Exception as error:  # Damaged files make both loaders raise almost anything.
        raise CheckpointError(f"cannot be loaded: {one_line(error)}", where=path) from error
