"""A network with its convolutions in 8-bit integers, for forward passes on a CPU.

Weights are rounded to 127 levels on either side of zero, channel by channel; inputs of a layer to
255 levels between the smallest and the largest value that some data put there (Jacob et al.,
"Quantization and training of neural networks for efficient integer-arithmetic-only inference",
CVPR 2018). Sums are exact, outputs float32. There are no gradients through rounding, so this
serves attacks that ask for logits only. The first convolution, which sees perturbations of a few
grey levels, stays in float32, and so does everything that is no convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robench.evaluation.search_models import EagerModel
from robench.evaluation.variants import fold_batch_norm, put_layer
from robench.models.wrapper import RobenchModel

__all__ = ["build_quantised"]

_LEVELS = 255
_WEIGHT_LEVELS = 127
_TINY = 1e-12


def build_quantised(model: RobenchModel, points: Tensor) -> EagerModel | None:
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
                put_layer(other.network, name, _QuantisedConvolution(layer, *ranges[name]))
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # what cannot be copied, or run layer by layer, is run as it is
    return EagerModel(
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

    @contextmanager
    def watched() -> Iterator[None]:
        hooks = []
        for name, layer in layers.items():

            def note(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                low, high = (float(bound) for bound in given[0].aminmax())
                before = ranges.get(name, (low, high))
                ranges[name] = min(low, before[0]), max(high, before[1])

            hooks.append(layer.register_forward_pre_hook(note))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    with watched(), torch.no_grad():
        model(points)
    return ranges


class _QuantisedConvolution(nn.Module):
    """Takes the place of a convolution whose parameters are fixed.

    Args:
        layer: the convolution.
        low: its smallest input; what lies below is cut off.
        high: its largest input.
    """

    def __init__(self, layer: nn.Conv2d, low: float, high: float) -> None:
        super().__init__()
        low, high = min(low, 0.0), max(high, 0.0)  # zero, the padding, must be a level
        self.scale = max((high - low) / _LEVELS, _TINY)
        self.zero = round(-low / self.scale)
        self.shift = torch.tensor(self.zero + 0.5)  # casting cuts off
        weight = layer.weight.detach()
        steps = (weight.flatten(1).abs().amax(dim=1) / _WEIGHT_LEVELS).clamp_min(_TINY)
        rounded = (weight / steps.view(-1, 1, 1, 1)).round().to(torch.int8)
        self.geometry = list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups
        self.packed = torch.ops.onednn.qconv_prepack(
            rounded, steps, self.scale, self.zero, *self.geometry, None
        )
        self.steps = steps
        self.zeros = torch.zeros(len(steps), dtype=torch.int32)
        self.bias = None if layer.bias is None else layer.bias.detach().clone()

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) float32 → (B, C′, H′, W′) float32."""
        levels = torch.add(self.shift, inputs, alpha=1 / self.scale).clamp_(0, _LEVELS + 0.5)
        output: Tensor = torch.ops.onednn.qconv2d_pointwise(
            # PyTorch casts float32 to bytes one by one, but to shorts, and these to bytes, in bulk.
            levels.to(torch.int16).to(torch.uint8),
            self.scale,
            self.zero,
            self.packed,
            self.steps,
            self.zeros,
            self.bias,
            *self.geometry,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return output
