"""One way to ask for attention maps, whatever the method."""

from torch import Tensor, nn

from robench.attention.catalogue import ATTENTION_METHODS
from robench.errors import UsageError
from robench.probes import resolve_layer


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
        return self._method.maps(
            self._model, inputs, targets, layer=self._layer, create_graph=create_graph
        )

    def prepare(self, inputs: Tensor) -> None:
        """Choose the layer, by a forward pass of the first input, if that is still to do."""
        if self._layer is None and self._method.find_layer is not None:
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
