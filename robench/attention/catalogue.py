"""Kinds of attention maps by the name that cards and records use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from robench.attention.feature_maps import find_spatial_layer
from robench.attention.feature_sum import feature_sum
from robench.attention.grad_cam import grad_cam
from robench.attention.rollout import rollout
from robench.registry import Registry


class MapFunction(Protocol):
    """Computes maps (N, h, w) for ``targets`` (N,) of ``inputs`` (N, C, H, W)."""

    def __call__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        *,
        layer: str | None = None,
        create_graph: bool = False,
    ) -> Tensor:
        """See :meth:`robench.attention.AttentionExtractor.__call__`."""


@dataclass(frozen=True, slots=True)
class AttentionMethod:
    """A kind of map.

    Attributes:
        maps: computes them.
        find_layer: chooses the layer where none is given; None for a method without layers.
        by_class: whether another class has another map.
    """

    maps: MapFunction
    find_layer: Callable[[nn.Module, Tensor], str] | None
    by_class: bool


ATTENTION_METHODS: Registry[AttentionMethod] = Registry("attention method")
"""Kinds of maps by the name that cards and records use."""

ATTENTION_METHODS.add(
    "grad_cam",
    AttentionMethod(grad_cam, find_spatial_layer, by_class=True),
    "gradient-weighted feature map of one layer, for a class",
)
ATTENTION_METHODS.add(
    "feature_sum",
    AttentionMethod(feature_sum, find_spatial_layer, by_class=False),
    "feature map of one layer summed over channels, the same for every class",
)
ATTENTION_METHODS.add(
    "rollout",
    AttentionMethod(rollout, None, by_class=False),
    "attention weights multiplied through a transformer's layers, the same for every class",
)
