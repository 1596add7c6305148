"""What an interrupted run needs to go on with the same result."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robench.errors import CheckpointError, UsageError
from robench.files import atomic_write, check_regular

STATE_FILE = ".training-state.pt"
_VERSION = 2

Weights = dict[str, Tensor]


@dataclass
class Best:
    """The best weights so far and the validation figures that made them so."""

    epoch: int
    weights: Weights
    figures: dict[str, float]


@dataclass
class TrainingState:
    """Everything after a finished epoch. Random draws are keyed by epoch and need no state.

    Args:
        identity: the run's settings as text by name; a resumed run must have the same.
        epoch: epochs finished; with none, there is nothing else.
        network, average, optimiser: state dicts; ``average`` is None without a moving average.
        best: the best checkpoint so far.
    """

    identity: dict[str, str]
    epoch: int = 0
    network: Weights = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    average: Weights | None = None
    best: Best | None = None

    def save(self, folder: Path) -> None:
        """Write atomically into ``folder``.

        Raises:
            StoreError: the folder cannot be written.
        """
        best = None if self.best is None else vars(self.best)
        content = {**vars(self), "best": best, "version": _VERSION}
        atomic_write(folder / STATE_FILE, partial(torch.save, content))

    @classmethod
    def load(cls, folder: Path, identity: dict[str, str]) -> TrainingState | None:
        """The state in ``folder``, or None where there is none.

        Raises:
            UsageError: it belongs to a run with other settings.
            CheckpointError: it cannot be read.
        """
        path = folder / STATE_FILE
        if not path.exists():
            return None
        try:
            check_regular(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            if content.pop("version") != _VERSION:
                raise ValueError("another version")
            best = content.pop("best")
            state = cls(best=None if best is None else Best(**best), **content)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise CheckpointError(
                f"the interrupted run's state cannot be read: {error}",
                where=path,
                hint="Start again with --overwrite",
            ) from error
        names = sorted(set(identity) | set(state.identity))
        other = [name for name in names if state.identity.get(name) != identity.get(name)]
        if other:
            shown = ", ".join(f"{n} was {state.identity.get(n, 'not set')}" for n in other[:4])
            raise UsageError(
                f"the folder holds an interrupted run with other settings ({shown})",
                where=folder,
                hint="Use those settings, another folder, or --overwrite",
            )
        return state

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove the state in ``folder``, if any."""
        (folder / STATE_FILE).unlink(missing_ok=True)
