"""Attention rollout: what a transformer's output tokens drew from each patch.

Abnar & Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020 (arXiv 2005.00928): the
softmax weights of every layer, averaged over heads and mixed with the residual connection, are
multiplied through the layers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robench.attention.softmax_weights import recorded_weights
from robench.attention.token_grids import declared, token_grid
from robench.errors import ModelError, UsageError
from robench.probes import checked_inputs, undisturbed


def rollout(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor | None = None,
    *,
    layer: str | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Rollout maps on the patch grid; one forward pass, no backward one.

    They show what the class token drew from each patch, or, in a network without one, the mean
    of the patch tokens. How many tokens stand before the patches is asked of the network
    (``num_prefix_tokens``), else inferred from their number and the inputs' aspect.

    Weights come from every global self-attention of the pass (see
    :func:`robench.attention.softmax_weights.recorded_weights`): ``nn.MultiheadAttention``,
    anything that calls ``scaled_dot_product_attention`` (torchvision, timm, Hugging Face), and
    modules that expose them. A last attention pooling with one query is the readout itself.

    Arguments are those of :func:`robench.attention.grad_cam`; ``targets`` are not used, for rollout
    is the same for every class, and ``layer`` must be None, for it runs through all layers.

    Returns:
        (N, h, w), 0 or larger, one cell a patch; sums to at most 1. At least float32.

    Raises:
        ModelError: no attention weights, not global ones, or tokens that form no grid.
        UsageError: a layer, or malformed inputs.
    """
    if layer is not None:
        raise UsageError("rollout runs through all layers", where=layer, hint="Leave out the layer")
    with torch.inference_mode(False):
        inputs = checked_inputs(inputs)
        with undisturbed(model), torch.set_grad_enabled(create_graph):
            with recorded_weights(model) as recorded:
                model(inputs)
            weights, start = _global(recorded, inputs.shape[0])
            tokens = int(weights[0].shape[-1])
            size = (int(inputs.shape[2]), int(inputs.shape[3]))
            prefix, grid = token_grid(tokens, size, declared(model, "num_prefix_tokens", int))
            if start is None:
                start = weights[0].new_zeros(inputs.shape[0], tokens)
                if prefix > 0 and declared(model, "has_class_token", bool) is not False:
                    start[:, 0] = 1
                else:
                    start[:, prefix:] = 1 / (tokens - prefix)
            reached = rollout_tokens(weights, start)
    return reached[:, prefix:].reshape(-1, *grid)


def rollout_tokens(weights: Sequence[Tensor], start: Tensor, *, residual: float = 0.5) -> Tensor:
    """start · Â_L · … · Â_1 with Â = (1 - r)·A + r·I and A the mean over heads.

    Only the rows that are asked for are multiplied through, a vector by a matrix a layer.

    Args:
        weights: softmax weights of each layer, first layer first, (N, T, T) or with heads
            (N, heads, T, T); rows sum to 1.
        start: (N, T), the share of each output token in the readout.
        residual: r, the weight of the skip connection; the paper's 0.5.

    Returns:
        (N, T): the share of each input token; sums to 1 where ``start`` does.

    >>> first = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    >>> rollout_tokens([first, first], torch.tensor([[1.0, 0.0]]))
    tensor([[0.5000, 0.5000]])
    """
    row = start[:, None, :]
    for layer in reversed(weights):
        mean = layer.mean(dim=1) if layer.ndim == 4 else layer
        row = (1 - residual) * (row @ mean) + residual * row
    return row[:, 0]


def _global(recorded: list[Tensor], n: int) -> tuple[list[Tensor], Tensor | None]:
    """Weights (N, T, T) of each layer, and the row of a last pooling attention if there is one."""
    if not recorded:
        raise ModelError(
            "no attention weights were seen in the forward pass",
            hint="Use Grad-CAM for a convolutional network; a module with its own attention can "
            "set exposes_attention = True and define attention_weights(x)",
        )
    *before, last = recorded
    pooling = None
    if before and last.ndim == 3 and last.shape[1] == 1 != last.shape[2]:
        recorded, pooling = before, last[:, 0]
    tokens = recorded[0].shape[-1]
    if any(weights.shape != (n, tokens, tokens) for weights in recorded) or (
        pooling is not None and pooling.shape != (n, tokens)
    ):
        shapes = sorted({tuple(weights.shape) for weights in recorded})
        raise ModelError(
            f"attention is not global: weights of shapes {', '.join(map(str, shapes))}",
            hint="Rollout is defined where every layer attends over the same tokens; "
            "use Grad-CAM for windowed or hierarchical transformers",
        )
    return recorded, pooling
