"""The model as searches see it: the original, or faster stand-ins of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robench.attacks.base import AttackKind, Gradient
from robench.attacks.losses import Loss

__all__ = ["EagerModel", "MixedModel", "SearchModel", "SearchModels"]


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
        module: (B, C, H, W) → logits (B, K).
        description: for the record.
        tolerance: how far its margins may be from the original model's, in logits.
        dtype: inputs are cast to it; the module casts its outputs as it likes.
        memory_format: of the inputs.
        precision: of most of its layers, ``fp32``, ``tf32``, ``bf16`` or ``fp16``.
    """

    def __init__(
        self,
        module: nn.Module,
        description: str = "fp32",
        tolerance: float = 0.0,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        precision: str = "fp32",
    ) -> None:
        self.module = module
        self.description = description
        self.tolerance = tolerance
        self.dtype = dtype
        self.memory_format = memory_format
        self.precision = precision

    def _prepare(self, points: Tensor) -> Tensor:
        return points.to(dtype=self.dtype, memory_format=self.memory_format)

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        with torch.no_grad():
            logits: Tensor = self.module(self._prepare(points))
        return logits.float()

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """One forward and one backward pass; the loss and its slope are computed in float32."""
        with torch.enable_grad():
            leaf = self._prepare(points.detach()).requires_grad_()
            logits = self.module(leaf)
        losses, slope = loss(logits.detach().float())
        if not logits.requires_grad:  # an output that does not depend on the input
            return Gradient(logits.float(), losses, torch.zeros_like(points))
        (gradient,) = torch.autograd.grad(logits, leaf, slope.to(logits.dtype), allow_unused=True)
        if gradient is None:
            return Gradient(logits.detach().float(), losses, torch.zeros_like(points))
        return Gradient(
            logits.detach().float(),
            losses,
            gradient.to(dtype=points.dtype, memory_format=torch.contiguous_format),
        )

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and their gradients (B, K, C, H, W): one forward, K backward passes."""
        with torch.enable_grad():
            leaf = self._prepare(points.detach()).requires_grad_()
            logits = self.module(leaf)
        slopes = []
        for index in range(logits.shape[1]):
            unit = torch.zeros_like(logits)
            unit[:, index] = 1
            (slope,) = torch.autograd.grad(logits, leaf, unit, retain_graph=True)
            slopes.append(slope.to(dtype=points.dtype, memory_format=torch.contiguous_format))
        return logits.detach().float(), torch.stack(slopes, dim=1)


class MixedModel:
    """Forward passes through one variant, gradients through another."""

    def __init__(self, forward: SearchModel, backward: SearchModel) -> None:
        self.forward = forward
        self.backward = backward
        self.tolerance = max(forward.tolerance, backward.tolerance)
        self.description = forward.description
        if backward.description != forward.description:
            self.description += f" forward, {backward.description} backward"

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        return self.forward.logits(points)

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """One forward and one backward pass."""
        return self.backward.gradient(points, loss)

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the gradients of each."""
        return self.backward.jacobian(points)


@dataclass(frozen=True)
class SearchModels:
    """What the searches of one model run on."""

    search: SearchModel
    """The fastest that agrees"""
    queries: SearchModel
    """The fastest for attacks that ask for logits only; it need not have gradients"""
    even: SearchModel
    """The fastest whose forward passes and gradients are of one precision"""
    exact: SearchModel
    """The fastest that differs from the original by float32 rounding only"""

    @classmethod
    def all_on(cls, model: SearchModel) -> SearchModels:
        """One for everything."""
        return cls(model, model, model, model)

    def different(self) -> list[SearchModel]:
        """Each of them once."""
        return list(dict.fromkeys((self.search, self.queries, self.even, self.exact)))

    def for_attack(self, kind: AttackKind) -> SearchModel:
        """What an attack of that kind runs on, far from the boundary."""
        models = {"gradient": self.search, "boundary": self.even, "query": self.queries}
        return models[kind]
