"""The model as the search sees it: the original, or a faster stand-in of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robench.attacks.base import Gradient
from robench.attacks.losses import Loss

__all__ = ["EagerModel"]


class EagerModel:
    """A module run as it is, in whatever precision its parameters have.

    Args:
        module: (B, C, H, W) → logits (B, K).
        description: for the record.
        tolerance: how far its margins may be from the original model's, in logits.
        dtype: inputs are cast to it; the module casts its outputs as it likes.
        memory_format: of the inputs.
    """

    def __init__(
        self,
        module: nn.Module,
        description: str = "fp32",
        tolerance: float = 0.0,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self.module = module
        self.description = description
        self.tolerance = tolerance
        self.dtype = dtype
        self.memory_format = memory_format

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
