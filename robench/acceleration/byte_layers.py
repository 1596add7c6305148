"""Layers that multiply bytes, and how they are joined.

Weights are rounded to 127 levels on either side of zero, channel by channel; inputs of a layer to
255 levels between the smallest and the largest value that some data put there (Jacob et al.,
"Quantization and training of neural networks for efficient integer-arithmetic-only inference",
CVPR 2018). Sums are exact. The operators are those that torch.compile emits; PyTorch has no public
names for them.
"""

from __future__ import annotations

import operator
from collections import Counter

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

__all__ = ["QuantisedConvolution", "join_layers"]

_LEVELS = 255
_WEIGHT_LEVELS = 127
_TINY = 1e-12
_ADDITIONS = (operator.add, operator.iadd, torch.add)


class QuantisedConvolution(nn.Module):
    """Takes the place of a convolution whose parameters are fixed.

    Args:
        layer: the convolution.
        low: its smallest input; what lies below is cut off.
        high: its largest input.

    Attributes:
        emitted: scale and zero of what it passes on as bytes; None: float32.
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
        self.emitted: tuple[float, int] | None = None

    def forward(self, inputs: Tensor, added: Tensor | None = None) -> Tensor:
        """Convolve, and add and rectify where there is something to add to.

        Args:
            inputs: (B, C, H, W), float32, or the bytes of a layer that emits them.
            added: float32 (B, C′, H′, W′), channels last: the result is added to it, in its
                place, and cut off at zero.

        Returns:
            (B, C′, H′, W′), float32 or bytes.
        """
        levels = inputs if inputs.dtype == torch.uint8 else self._rounded(inputs)
        layer = levels, self.scale, self.zero, self.packed, self.steps, self.zeros
        operators = torch.ops.onednn
        no_numbers: list[float] = []
        if added is not None:
            # Scale, zero and type of the result, then scale and zero of what it is added to.
            after = 1.0, 0, torch.float32, 1.0, 0, "sum", 1.0, "relu", no_numbers, ""
            # Of a single image PyTorch may give any layout to what it computes.
            added = added.contiguous(memory_format=torch.channels_last)
            total: Tensor = operators.qconv2d_pointwise(
                *layer, added, self.bias, *self.geometry, *after
            )
            return total
        scale, zero = self.emitted or (1.0, 0)
        dtype = torch.float32 if self.emitted is None else torch.uint8
        alone = scale, zero, dtype, "none", no_numbers, ""
        output: Tensor = operators.qconv2d_pointwise(*layer, self.bias, *self.geometry, *alone)
        return output

    def _rounded(self, inputs: Tensor) -> Tensor:
        levels = torch.add(self.shift, inputs, alpha=1 / self.scale).clamp_(0, _LEVELS + 0.5)
        # PyTorch casts float32 to bytes one by one, but to shorts, and these to bytes, in bulk.
        return levels.to(torch.int16).to(torch.uint8)


def join_layers(network: GraphModule) -> None:
    """Let layers pass bytes on to each other, and add and rectify what follows them.

    Bytes cannot be negative, so where they have their zero at 0 the ReLU between two layers is
    left out; where one follows the addition of a shortcut, both are done by the layer before.
    """
    calls = Counter(node.target for node in network.graph.nodes if node.op == "call_module")
    for node in list(network.graph.nodes):
        layer = _layer_of(node, network)
        # What a layer passes on is its own setting: it must suit all of its calls.
        if layer is not None and calls[node.target] == 1:
            _pass_bytes_on(node, layer, network)
    for node in list(network.graph.nodes):
        if _is_relu(node, network):
            _add_and_rectify(node, network)
    network.graph.lint()
    network.recompile()


def _layer_of(node: Node, network: GraphModule) -> QuantisedConvolution | None:
    if node.op != "call_module":
        return None
    layer = network.get_submodule(str(node.target))
    return layer if isinstance(layer, QuantisedConvolution) else None


def _is_relu(node: Node, network: GraphModule) -> bool:
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))) is nn.ReLU
    if node.op == "call_method":
        return node.target == "relu"
    return node.op == "call_function" and node.target in (torch.relu, nn.functional.relu)


def _pass_bytes_on(node: Node, layer: QuantisedConvolution, network: GraphModule) -> None:
    """Where nothing but layers, or a ReLU before them, uses what a layer computes."""
    users = list(node.users)
    relu = users[0] if len(users) == 1 and _is_relu(users[0], network) else None
    readers = [_layer_of(user, network) for user in (users if relu is None else relu.users)]
    scales = {None if reader is None else (reader.scale, reader.zero) for reader in readers}
    if len(scales) != 1 or None in scales:
        return
    layer.emitted = scales.pop()
    if relu is not None:
        relu.replace_all_uses_with(node)
        network.graph.erase_node(relu)


def _add_and_rectify(relu: Node, network: GraphModule) -> None:
    """relu(layer(x) + shortcut), where the shortcut is not needed any more and may be written on."""
    addition = relu.args[0]
    if not isinstance(addition, Node) or addition.target not in _ADDITIONS:
        return
    if len(addition.users) > 1 or addition.kwargs or len(addition.args) != 2:
        return
    for node, shortcut in (addition.args, addition.args[::-1]):
        if not isinstance(node, Node) or not isinstance(shortcut, Node) or len(node.users) > 1:
            continue
        layer = _layer_of(node, network)
        if layer is None or layer.emitted is not None or len(node.args) > 1:
            continue
        if not _is_own(shortcut, network) or any(user > addition for user in shortcut.users):
            continue
        with network.graph.inserting_before(addition):
            joined = network.graph.call_module(str(node.target), (node.args[0], shortcut))
        relu.replace_all_uses_with(joined)
        for done in (relu, addition, node):
            network.graph.erase_node(done)
        return


def _is_own(node: Node, network: GraphModule) -> bool:
    """Whether a value lies in memory of its own, as layers and ReLUs make it."""
    layer = _layer_of(node, network)
    return _is_relu(node, network) or (layer is not None and layer.emitted is None)
