"""Grad-CAM: which cells of a feature map speak for a class.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017 (arXiv 1610.02391), equations 1 and 2, without upsampling.
"""

import torch
from torch import Tensor, nn

from robench.attention.feature_maps import (
    as_map,
    checked_targets,
    find_spatial_layer,
    tapped,
)
from robench.attention.token_grids import declared
from robench.errors import ModelError
from robench.probes import at_least_float32, checked_inputs, checked_logits


def grad_cam(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    layer: str | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Grad-CAM maps of ``targets`` at a layer: ReLU(Σ_c α_c F_c), α_c the mean of ∂logit/∂F_c.

    One forward and one backward pass, the latter from the logits to the layer only. Works with
    frozen parameters and where the caller has gradients switched off; hooks, buffers, training
    flags and gradients are left as they were, also after an error.

    A layer that runs several times counts with its last call; of several outputs the first 4-D
    one. A network in training mode couples the samples of a batch through its normalisation, and
    so do its maps.

    Args:
        model: network that maps inputs to logits (N, classes); wrappers are fine.
        inputs: (N, C, H, W) in [0, 1].
        targets: (N,) class numbers: true, predicted or any other.
        layer: dotted name of a submodule; None takes the last spatial one, which costs a forward
            pass of one input (see :func:`robench.attention.feature_maps.find_spatial_layer`).
        create_graph: keep the maps differentiable in the parameters, and in ``inputs`` if they
            require gradients, for losses on maps.

    Returns:
        (N, h, w), 0 or larger, at the layer's resolution; all zero where nothing speaks for the
        class. At least float32.

    Raises:
        UnknownNameError: no such layer; near misses are listed.
        ModelError: no spatial layer, one that does not reach the logits, or no logits.
        UsageError: malformed inputs or targets.
    """
    with torch.inference_mode(False):
        inputs = checked_inputs(inputs)
        chosen = find_spatial_layer(model, inputs) if layer is None else layer
        if create_graph and not inputs.requires_grad:
            # With frozen parameters nothing else would connect the feature map to a graph.
            inputs = inputs.detach().requires_grad_().clone()
        with (
            tapped(model, chosen, leaf=not create_graph) as feature_map,
            torch.set_grad_enabled(create_graph),
        ):
            logits = checked_logits(model(inputs), inputs.shape[0])
            torch.set_grad_enabled(True)
            features = feature_map()
            targets = checked_targets(targets, logits)
            scores = logits.gather(1, targets[:, None]).sum()
            gradient = _gradient(scores, features, chosen, create_graph)
            prefix = declared(model, "num_prefix_tokens", int)
            maps = _weighted(as_map(features, inputs, prefix), as_map(gradient, inputs, prefix))
    return maps if create_graph else maps.detach()


def _gradient(scores: Tensor, features: Tensor, layer: str, create_graph: bool) -> Tensor:
    gradient = None
    if scores.requires_grad:
        (gradient,) = torch.autograd.grad(
            scores, features, create_graph=create_graph, allow_unused=True
        )
    if gradient is None:
        raise ModelError(
            "the logits do not depend on this layer's last output",
            where=layer,
            hint="Choose a layer on the way to the logits",
        )
    return gradient


def _weighted(features: Tensor, gradient: Tensor) -> Tensor:
    weights = at_least_float32(gradient).mean(dim=(2, 3))
    return torch.einsum("nc,nchw->nhw", weights, at_least_float32(features)).relu()
