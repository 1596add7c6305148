"""Kinds of attention maps by the name that cards and records use, and one way to ask for any."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from robench.attention.feature_maps import find_spatial_layer
from robench.attention.feature_sum import feature_sum
from robench.attention.grad_cam import grad_cam
from robench.attention.rollout import rollout
from robench.errors import UsageError
from robench.probes import precision_named, resolve_layer
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
        """See :meth:`AttentionExtractor.__call__`."""


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


class AttentionExtractor:
    """Maps of one model by one method at one layer, which is chosen once.

    Args:
        model: network that maps inputs to logits.
        method: name in :data:`ATTENTION_METHODS`.
        layer: dotted name of a submodule; None lets the method choose at the first batch.

    Raises:
        UnknownNameError: no such method or layer; near misses are listed.
        UsageError: a layer for a method that has none.
    """

    def __init__(
        self, model: nn.Module, *, method: str = "grad_cam", layer: str | None = None
    ) -> None:
        self._method = ATTENTION_METHODS[method]
        self._name = method
        self._model = model
        if layer is not None and self._method.find_layer is None:
            raise UsageError(
                f"{method} has no layer to choose", where=layer, hint="Leave out the layer"
            )
        self._layer = None if layer is None else resolve_layer(model, layer)[0]

    def __call__(self, inputs: Tensor, targets: Tensor, *, create_graph: bool = False) -> Tensor:
        """Maps (N, h, w), 0 or larger, at the layer's or patches' own resolution.

        Of inputs (N, C, H, W) in [0, 1] for the classes ``targets`` (N,), whichever they are;
        differentiable with ``create_graph``, for losses on maps.

        Raises:
            ModelError: the method is not defined for this network.
            UsageError: malformed inputs or targets.
        """
        self.prepare(inputs)
        with precision_named(self._model):
            return self._method.maps(
                self._model, inputs, targets, layer=self._layer, create_graph=create_graph
            )

    def prepare(self, inputs: Tensor) -> None:
        """Choose the layer, by a forward pass of the first input, if that is still to do."""
        if self._layer is None and self._method.find_layer is not None:
            with precision_named(self._model):
                self._layer = self._method.find_layer(self._model, inputs)

    def describe(self) -> str:
        """Method and layer for the record, such as ``grad_cam@blocks.2``.

        Raises:
            UsageError: the layer has not been chosen yet.
        """
        if self._method.find_layer is None:
            return self._name
        if self._layer is None:
            raise UsageError(
                f"the layer of {self._name} has not been chosen yet",
                hint="Compute maps or call prepare(inputs) first",
            )
        return f"{self._name}@{self._layer}"


def attention_maps(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    method: str = "grad_cam",
    layer: str | None = None,
) -> Tensor:
    """Maps (N, h, w) of one batch; arguments and errors are those of :class:`AttentionExtractor`."""
    return AttentionExtractor(model, method=method, layer=layer)(inputs, targets)
