"""Pieces that several masks share."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from mask_gallery.ground import Builder, Ground

Transform = Callable[[Tensor], Tensor]


class Straight(torch.autograd.Function):
    """A function forwards, another backwards: ``backward_by`` maps the gradient."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, function: Transform, backward_by: Transform) -> Tensor:
        ctx.backward_by = backward_by
        return function(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.backward_by(gradients[0]), None, None


class StraightThrough(nn.Module):
    """Another module forwards, the identity backwards."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        through: Tensor = Straight.apply(inputs, self.module, _same)
        return through


def _same(gradient: Tensor) -> Tensor:
    return gradient


class Averaged(nn.Module):
    """The mean of a random model's logits over some draws."""

    def __init__(self, module: nn.Module, draws: int = 8) -> None:
        super().__init__()
        self.module = module
        self.draws = draws

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([self.module(inputs) for _ in range(self.draws)]).mean(dim=0)


class MeanOf(nn.Module):
    """The mean of some networks' logits."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members]).mean(dim=0)


def before(make: Callable[[Ground], nn.Module]) -> Builder:
    """A transform, then the network."""
    return lambda ground: nn.Sequential(make(ground), ground.network)


def after(make: Callable[[Ground], nn.Module]) -> Builder:
    """The network, then something done to its logits."""
    return lambda ground: nn.Sequential(ground.network, make(ground))


def straightened(make: Callable[[Ground], nn.Module]) -> Builder:
    """The transform forwards, the identity backwards, then the network."""
    return before(lambda ground: StraightThrough(make(ground)))


def jittered(network: nn.Module, seed: int, by: float = 0.05) -> nn.Module:
    """A copy whose weights are changed by some share of their deviation."""
    copy = deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            spread = parameter.std() if parameter.numel() > 1 else parameter.abs()
            parameter += by * spread * noise.to(parameter)
    return copy


def one_hot(classes: Tensor, like: Tensor) -> Tensor:
    """Classes (N,) → 0 and 1, as the logits (N, K) of ``like``."""
    return nn.functional.one_hot(classes, like.shape[1]).to(like)


def taken(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Row by row of (N, K): ``yes`` where ``chosen`` (N,), else ``no``."""
    return torch.where(chosen[:, None], yes, no)
