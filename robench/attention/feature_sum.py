"""Feature-sum maps: the attention that AGKD-BML distils.

Wang et al., "Agkd-bml: Defense against adversarial attack by attention guided knowledge
distillation and bi-directional metric learning", ICCV 2021.
"""

import torch
from torch import Tensor, nn

from robench.attention.feature_maps import as_map, find_spatial_layer, tapped
from robench.attention.token_grids import declared
from robench.errors import UsageError
from robench.probes import at_least_float32, checked_inputs


def feature_sum_map(features: Tensor) -> Tensor:
    """Sum over channels of (N, C, h, w), then min-max for each sample; differentiable.

    Returns:
        (N, h, w) in [0, 1]; all zero where every cell has the same sum, for then no cell stands
        out.

    Raises:
        UsageError: not four axes.

    >>> feature_sum_map(torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]]))
    tensor([[[0., 1.]]])
    """
    if features.ndim != 4:
        raise UsageError(
            f"a feature map has shape {tuple(features.shape)}", hint="Give (N, C, h, w)"
        )
    sums = features.sum(dim=1)
    low = sums.amin(dim=(1, 2), keepdim=True)
    span = sums.amax(dim=(1, 2), keepdim=True) - low
    return (sums - low) / torch.where(span == 0, torch.ones_like(span), span)


def feature_sum(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor | None = None,
    *,
    layer: str | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Feature-sum maps at a layer; one forward pass, no backward one.

    Arguments are those of :func:`robench.attention.grad_cam`, of any network; ``targets`` are not
    used, for these maps are the same for every class.

    Returns:
        (N, h, w) in [0, 1], see :func:`feature_sum_map`. At least float32.

    Raises:
        UnknownNameError: no such layer; near misses are listed.
        ModelError: no spatial layer, or one without a 4-D output.
        UsageError: malformed inputs.
    """
    with torch.inference_mode(False):
        inputs = checked_inputs(inputs)
        chosen = find_spatial_layer(model, inputs) if layer is None else layer
        with tapped(model, chosen) as feature_map, torch.set_grad_enabled(create_graph):
            model(inputs)
            prefix = declared(model, "num_prefix_tokens", int)
            features = as_map(feature_map(), inputs, prefix)
            return feature_sum_map(at_least_float32(features))
