"""How to run an evaluation, as opposed to what to evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Settings:
    """Everything that may change the time a run takes, and the seed.

    Attributes:
        seed: of all draws.
        device: where the model runs.
        precision: of the search, ``auto`` or a name of :mod:`robench.acceleration.model_choice`.
        batch_size: inputs at a time; None: chosen by measurement.
        workers: searches side by side; None: on a CPU one for each thread of torch's.
        save_adversarial: keep every adversarial input in the store.
        snapshot_seconds: how often an unfinished job is saved.
    """

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    save_adversarial: bool = False
    snapshot_seconds: float = 10.0
