"""Masks that depend on what else a model was asked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mask_gallery.ground import Ground, PlantedMask, Yardstick


class AfterCalls(nn.Module):
    """A robust network takes over after some passes."""

    def __init__(self, ground: Ground, calls: int = 20) -> None:
        super().__init__()
        self.network = ground.network
        self.robust = ground.robust
        self.left = calls

    def forward(self, inputs: Tensor) -> Tensor:
        self.left -= 1
        weak, robust = self.network(inputs), self.robust(inputs)
        logits: Tensor = weak if self.left >= 0 else robust
        return logits


class AloneOnly(nn.Module):
    """An input alone is answered by the network, inputs in company by a robust one."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        self.robust = ground.robust

    def forward(self, inputs: Tensor) -> Tensor:
        weak, robust = self.network(inputs), self.robust(inputs)
        logits: Tensor = weak if len(inputs) == 1 else robust
        return logits


class FifthRaises(nn.Module):
    """Raises at every fifth pass."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 5 == 0:
            raise RuntimeError("temporarily unavailable")
        logits: Tensor = self.network(inputs)
        return logits


class Dropping(nn.Module):
    """Drops one of twenty pixels, at every pass others."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.network = ground.network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs * (torch.rand_like(inputs) > 0.05))
        return logits


_STATE = ("history_dependent", "changing_state", "batch_dependent", "attacked_above_clean")

MASKS = (
    PlantedMask("after-calls", AfterCalls, _STATE, Yardstick(judged="fresh"), branches=True),
    PlantedMask(
        "alone-only",
        AloneOnly,
        _STATE,
        Yardstick(judged="alone"),
        branches=True,
        beyond="verdicts are of batches, and the doctor says that they depend on them",
    ),
    PlantedMask(
        "fifth-raises",
        FifthRaises,
        ("errored_samples", "forward_fails", "raises"),
        Yardstick(judged="patient"),
    ),
    PlantedMask(
        "dropped-pixels", Dropping, ("randomised",), Yardstick(judged="majority"), costs=0.05
    ),
)
