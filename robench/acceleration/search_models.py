"""The model as searches see it: the original, or faster stand-ins of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robench.attacks.base import AttackKind, Gradient
from robench.attacks.losses import Loss

__all__ = ["EagerModel", "SearchModel", "SearchModels"]


class SearchModel(Protocol):
    """A model as the search uses it: any precision inside, float32 logits and gradients outside."""

    description: str
    """Precision and layout, for the record"""
    tolerance: float
    """How far a margin may be from the original model's, in logits; 0 for the model itself"""

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        ...

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """One forward and one backward pass."""
        ...

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and their gradients (B, K, C, H, W)."""
        ...


class EagerModel:
    """A module run as it is, in whatever precision its parameters have.

    Args:
        module: (B, C, H, W) float32 → logits (B, K).
        description: for the record.
        tolerance: how far its margins may be from the original model's, in logits.
        memory_format: of the inputs.
        setting: makes what its passes, and nothing else, run under.
    """

    def __init__(
        self,
        module: nn.Module,
        description: str = "fp32",
        tolerance: float = 0.0,
        memory_format: torch.memory_format = torch.contiguous_format,
        setting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.module = module
        self.description = description
        self.tolerance = tolerance
        self.memory_format = memory_format
        self.setting = setting

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        with self.setting(), torch.no_grad():
            logits: Tensor = self.module(points.to(memory_format=self.memory_format))
        return logits.float()

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """One forward and one backward pass; the loss and its slope are computed in float32."""
        with self.setting():
            leaf, logits = self._forward(points)
            losses, slope = loss(logits.detach().float())
            gradient = None
            if logits.requires_grad:  # otherwise the output does not depend on the input
                (gradient,) = torch.autograd.grad(
                    logits, leaf, slope.to(logits.dtype), allow_unused=True
                )
        gradient = torch.zeros_like(points) if gradient is None else gradient
        return Gradient(
            logits.detach().float(),
            losses,
            gradient.to(memory_format=torch.contiguous_format),
        )

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and their gradients (B, K, C, H, W): one forward, K backward passes."""
        slopes = []
        with self.setting():
            leaf, logits = self._forward(points)
            for index in range(logits.shape[1]):
                unit = torch.zeros_like(logits)
                unit[:, index] = 1
                (slope,) = torch.autograd.grad(logits, leaf, unit, retain_graph=True)
                slopes.append(slope.to(memory_format=torch.contiguous_format))
        return logits.detach().float(), torch.stack(slopes, dim=1)

    def _forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs that gradients are for, and their logits."""
        with torch.enable_grad():
            leaf = points.detach().to(memory_format=self.memory_format).requires_grad_()
            return leaf, self.module(leaf)


@dataclass(frozen=True)
class SearchModels:
    """What the searches of one model run on, by the kind of attack."""

    search: SearchModel
    """For attacks by gradients"""
    queries: SearchModel
    """For attacks that ask for logits only"""
    boundary: SearchModel
    """For attacks that walk along the decision boundary, which low precision moves"""
    exact: SearchModel
    """Differs from the original by float32 rounding only"""

    @classmethod
    def all_on(cls, model: SearchModel) -> SearchModels:
        """One for everything."""
        return cls(model, model, model, model)

    def different(self) -> list[SearchModel]:
        """Each of them once."""
        return list(dict.fromkeys((self.search, self.queries, self.boundary, self.exact)))

    def for_attack(self, kind: AttackKind) -> SearchModel:
        """What an attack of that kind runs on, far from the boundary."""
        models = {"gradient": self.search, "boundary": self.boundary, "query": self.queries}
        return models[kind]
