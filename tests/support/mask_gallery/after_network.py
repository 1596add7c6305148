"""Masks that change what comes out: scales, offsets, resolution, probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mask_gallery.ground import PlantedMask
from mask_gallery.parts import after, one_hot


class Scale(nn.Module):
    """Logits times a factor: cross-entropy has no slope where the model is sure."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


class Offset(nn.Module):
    """A number so large that float32 has no digits left for the margin."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: Tensor) -> Tensor:
        return logits + self.by


class Saturate(nn.Module):
    """Squeezes logits to where their slope is nearly zero."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(self.factor * (logits - logits.detach().amax(dim=1, keepdim=True)))


class Clamp(nn.Module):
    """Logarithms of probabilities that end at a floor, above which only the winner is."""

    def __init__(self, floor: float = -3.0) -> None:
        super().__init__()
        self.floor = floor

    def forward(self, logits: Tensor) -> Tensor:
        return torch.log_softmax(logits, dim=1).clamp(min=self.floor, max=-0.02)


class Half(nn.Module):
    """Float16, far from zero: a step of one half."""

    def forward(self, logits: Tensor) -> Tensor:
        return (logits + 700).half().float()


class Softmax(nn.Module):
    """Probabilities in the place of logits, of logits times a factor."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return torch.softmax(self.factor * logits, dim=1)


class OneHot(nn.Module):
    """The class alone."""

    def forward(self, logits: Tensor) -> Tensor:
        return one_hot(logits.argmax(dim=1), logits)


class Whole(nn.Module):
    """Whole numbers."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.round()


_FLAT = ("no_gradients", "flat_margin", "fidelity", "continuity", "vanishing_gradients")
_COARSE = ("coarse_margins", "resolution", *_FLAT)
_PROBABILITIES = ("softmax_outputs", "sigmoid_outputs", *_COARSE)

MASKS = (
    PlantedMask("temperature", after(lambda g: Scale(1e4)), _COARSE),
    PlantedMask("offset", after(lambda g: Offset(1e6)), _COARSE),
    PlantedMask("saturated", after(lambda g: Saturate(4.0)), _PROBABILITIES),
    PlantedMask("clamped", after(lambda g: Clamp()), _COARSE),
    PlantedMask("half-precision", after(lambda g: Half()), _COARSE, costs=0.03),
    PlantedMask("softmax", after(lambda g: Softmax()), _PROBABILITIES),
    PlantedMask("sharp-softmax", after(lambda g: Softmax(10.0)), _PROBABILITIES),
    PlantedMask("one-hot", after(lambda g: OneHot()), _PROBABILITIES),
    PlantedMask("whole-logits", after(lambda g: Whole()), _FLAT, costs=0.05),
)
