"""Penultimate features: what the last linear layer sees."""

from typing import Any

from torch import Tensor, nn

from robench.errors import ModelError
from robench.probes import (
    at_least_float32,
    checked_inputs,
    checked_logits,
    forward_hooks,
    resolve_layer,
    undisturbed,
)


def penultimate_features(
    model: nn.Module, inputs: Tensor, *, layer: str | None = None
) -> tuple[Tensor, Tensor]:
    """The input of the last linear layer that is called, and the logits of the same pass.

    One forward pass in the caller's gradient mode; hooks, buffers and training flags are left as
    they were, also after an error. A layer that runs several times counts with its last call.

    Args:
        model: network that maps inputs to logits; wrappers are fine.
        inputs: (N, C, H, W) in [0, 1].
        layer: dotted name of the submodule whose *input* is wanted; None takes the last
            ``nn.Linear`` called. A spatial input (N, C, h, w) is averaged over its cells.

    Returns:
        Features (N, D) and logits (N, classes); features are at least float32.

    Raises:
        UnknownNameError: no such layer; near misses are listed.
        ModelError: no linear layer, a layer that does not run or takes no features, no logits.
        UsageError: malformed inputs.
    """
    watched: list[nn.Module]
    if layer is None:
        name = "last linear layer"
        watched = [module for module in model.modules() if isinstance(module, nn.Linear)]
    else:
        name, named = resolve_layer(model, layer)
        watched = [named]
    caught: list[Tensor] = []

    def remember(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if given is not None:
            # Only the last call counts. A copy, because the layer may work in place; token
            # sequences, which are no features, are not worth one.
            caught[:] = [given if given.ndim == 3 else given.clone()]

    inputs = checked_inputs(inputs)
    with undisturbed(model), forward_hooks(watched, before=remember):
        logits = checked_logits(model(inputs), inputs.shape[0])
    if not caught:
        raise ModelError(
            "no features were seen in the forward pass",
            where=name,
            hint="Name the layer that takes them in the card (attention.feature_layer)",
        )
    return _flat(caught[0], inputs.shape[0], name), logits


def _flat(features: Tensor, n: int, layer: str) -> Tensor:
    if features.ndim == 4:
        features = features.mean(dim=(2, 3))
    if features.ndim != 2 or features.shape[0] != n:
        raise ModelError(
            f"its input has shape {tuple(features.shape)} for {n} inputs, not (N, D)",
            where=layer,
            hint="Name another layer in the card (attention.feature_layer)",
        )
    return at_least_float32(features)
