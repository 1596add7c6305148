"""A network with its convolutions in 8-bit integers, for forward passes on a CPU.

There are no gradients through rounding, so this serves attacks that ask for logits only. The first
convolution, which sees perturbations of a few grey levels, stays in float32, and so does
everything that is no convolution.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from robench.acceleration.byte_layers import QuantisedConvolution, join_layers
from robench.acceleration.search_models import EagerModel
from robench.acceleration.variants import fold_batch_norm, put_layer
from robench.models.wrapper import RobenchModel

__all__ = ["QuantisedModel", "build_quantised"]


class QuantisedModel(EagerModel):
    """A network of bytes, which has no gradients.

    Attributes:
        piece: inputs that it takes at a time; more are taken one such piece after the other.
    """

    piece: int | None = None

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        pieces = torch.split(points, self.piece or max(len(points), 1))
        return torch.cat([super(QuantisedModel, self).logits(piece) for piece in pieces])


def build_quantised(model: RobenchModel, points: Tensor) -> QuantisedModel | None:
    """The model with 8-bit convolutions; None where it has too few, or the processor no products.

    Args:
        model: on a CPU.
        points: (N, C, H, W), inputs that show which values each layer sees.
    """
    if not _is_supported(points.device):
        return None
    try:
        other = copy.deepcopy(model)
        folded = fold_batch_norm(other)
        layers = _quantisable(other.network)
        if not layers:
            return None
        ranges = _input_ranges(other, layers, points)
        for name, layer in layers.items():
            if name in ranges:
                put_layer(other.network, name, QuantisedConvolution(layer, *ranges[name]))
        if isinstance(other.network, GraphModule):
            join_layers(other.network)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # what cannot be copied, or run layer by layer, is run as it is
    return QuantisedModel(
        other,
        "int8 folded channels-last" if folded else "int8 channels-last",
        memory_format=torch.channels_last,
        precision="int8",
    )


def _is_supported(device: torch.device) -> bool:
    """Whether there are instructions for products of bytes, without which sums may saturate."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return (
        device.type == "cpu"
        and bool(has_vnni())
        and hasattr(torch.ops.onednn, "qconv2d_pointwise")
        and hasattr(torch.ops.onednn, "qconv_prepack")
    )


def _quantisable(network: nn.Module) -> dict[str, nn.Conv2d]:
    """All plain convolutions but the first, by name."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    return {
        name: layer
        for name, layer in list(layers.items())[1:]
        if type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    }


def _input_ranges(
    model: RobenchModel, layers: dict[str, nn.Conv2d], points: Tensor
) -> dict[str, tuple[float, float]]:
    """The smallest and the largest input of each layer that ran."""
    ranges: dict[str, tuple[float, float]] = {}

    with ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():

            def note(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                low, high = (float(bound) for bound in given[0].aminmax())
                before = ranges.get(name, (low, high))
                ranges[name] = min(low, before[0]), max(high, before[1])

            hooks.enter_context(layer.register_forward_pre_hook(note))
        model(points)
    return ranges
