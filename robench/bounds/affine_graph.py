"""A network as affine operations and ReLUs: what bounds on its outputs are computed on.

A trace writes down what the network computes for inputs of one shape. Every operation of that list
must be a ReLU, or affine in what comes from the input, the weights taken as constants:
then its bounds are known. Anything else is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import Node, map_arg

from robench.errors import ModelError, first_line

_KNOWN = (
    "convolutions, linear layers, batch normalisation, ReLU, average pooling, means and sums, "
    "reshaping, zero padding, constants added or multiplied, and sums of branches"
)

Kind = Literal["same", "weights", "sum"]

_AFFINE: dict[str, Kind] = {
    # Non-negative weights and no constant: the operation is its own magnitude.
    **dict.fromkeys(
        (
            *("view", "reshape", "_unsafe_view", "permute", "transpose", "t", "expand", "flatten"),
            *("unsqueeze", "squeeze", "slice", "select", "clone", "alias", "detach", "cat", "flip"),
            "constant_pad_nd",
            *("avg_pool2d", "_adaptive_avg_pool2d", "mean", "sum", "_to_copy", "lift_fresh_copy"),
        ),
        "same",
    ),
    # One operand comes from the input, the other is weights.
    **dict.fromkeys(("convolution", "addmm", "mm", "mul", "div", "neg"), "weights"),
    # Branches or constants, added or subtracted.
    **dict.fromkeys(("add", "sub", "rsub"), "sum"),
}
"""Operation of torch's core → how its magnitude is computed."""

_ADDED = {"convolution": 2, "addmm": 0}
"""Operation with weights → the place of the constant that it adds."""


@dataclass(frozen=True)
class Operation:
    """One step of the network.

    Attributes:
        name: torch's of the operation.
        parents: the positions of what it reads, 0 for the network's input.
        apply: the step itself: the parents' values (B, …) → its value (B, …).
        magnitude: how far its value moves at most when each coordinate of the parents moves by so
            much: the step with the weights' absolute values and no constant. None: a ReLU.
    """

    name: str
    parents: tuple[int, ...]
    apply: Callable[..., Tensor]
    magnitude: Callable[..., Tensor] | None

    @property
    def is_relu(self) -> bool:
        """Whether it is a ReLU; otherwise it is affine in its parents together."""
        return self.magnitude is None


class AffineGraph:
    """The operations of a network in the order in which they are computed.

    Weights are looked up when an operation is applied: bounds of a network in training follow its
    parameters.

    Args:
        network: its evaluation-mode forward of a batch like ``example`` is taken; its dtype is the
            one that bounds are computed in.
        example: (B, C, H, W) of the network's dtype. Every later batch has this shape.

    Raises:
        ModelError: the network cannot be written down, or has an operation without known bounds.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.example = example
        self.operations: list[Operation] = []
        self._positions: dict[Node, int] = {}
        self._constants: dict[Node, Callable[[], Any]] = {}
        traced = _trace(network, example)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                self._positions[node] = 0
            elif node.op == "get_attr":
                self._constants[node] = partial(getattr, traced, str(node.target))
            elif node.op == "call_function" and node.users:
                self._add(node)
            elif node.op == "output":
                self.output = self._positions[node.args[0]]
                """The position of the logits."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """The network's output (B, classes), step by step."""
        return self.values(inputs)[self.output]

    def values(self, inputs: Tensor) -> list[Tensor]:
        """The value at each position, ``inputs`` first."""
        found = [inputs]
        for operation in self.operations:
            found.append(operation.apply(*(found[place] for place in operation.parents)))
        return found

    def _add(self, node: Node) -> None:
        sources = [item for item in node.all_input_nodes if item in self._positions]
        if not sources:
            self._constants[node] = partial(self._call, node, {})
            return
        name = _operation_name(node)
        if name == "getitem" and node.args[1] == 0:
            # Of batch normalisation, whose first value is the only one that counts.
            self._positions[node] = self._positions[sources[0]]
            return
        if name == "relu":
            apply, magnitude = partial(self._call_on, node, sources), None
        elif name == "native_batch_norm":
            apply = partial(self._normalise, node)
            magnitude = partial(self._normalise_magnitude, node)
        else:
            self._check_affine(node, name, sources)
            apply = partial(self._call_on, node, sources)
            magnitude = partial(self._magnitude, node, name, sources)
        parents = tuple(self._positions[item] for item in sources)
        self.operations.append(Operation(name, parents, apply, magnitude))
        self._positions[node] = len(self.operations)

    def _check_affine(self, node: Node, name: str, sources: Sequence[Node]) -> None:
        kind, arguments = _AFFINE.get(name), list(node.args)
        fine = kind is not None
        if name == "div":
            fine = sources == arguments[:1]
        elif kind == "weights":
            # Of one that comes from the input, and that not as the weights.
            fine = len(sources) == 1 and arguments.count(sources[0]) == 1
            fine = fine and (name != "convolution" or sources[0] is arguments[0])
        elif name == "constant_pad_nd":
            fine = len(arguments) < 3 or arguments[2] in (0, 0.0)
        if not fine:
            raise ModelError(
                f"there are no bounds for the operation {name}",
                hint=f"They are known for {_KNOWN}",
            )

    def _call_on(self, node: Node, sources: Sequence[Node], *values: Tensor) -> Tensor:
        value: Tensor = self._call(node, dict(zip(sources, values, strict=True)))
        return value

    def _call(self, node: Node, values: dict[Node, Tensor]) -> Any:
        def look_up(item: Node) -> Any:
            return values[item] if item in values else self._constant(item)

        arguments, options = map_arg(node.args, look_up), map_arg(node.kwargs, look_up)
        if _operation_name(node) in ("_to_copy", "lift_fresh_copy"):
            return arguments[0]  # everything is of one dtype here
        target: Any = node.target
        return target(*arguments, **options)

    def _constant(self, node: Node) -> Any:
        # Channels last, torch 2.15's convolutions in one thread write past the gradients of weights'
        # absolute values; a kernel of 1 × 1 is in both layouts, and only a copy has the strides of one.
        value = self._constants[node]()
        if isinstance(value, Tensor) and value.dim() > 3:
            value = value.clone(memory_format=torch.contiguous_format)
        return value

    def _magnitude(self, node: Node, name: str, sources: Sequence[Node], *radii: Tensor) -> Tensor:
        values = dict(zip(sources, radii, strict=True))
        if _AFFINE[name] == "same":
            return self._call_on(node, sources, *radii)
        if name == "neg":
            return radii[0]

        def sized(place: int, item: Any) -> Any:
            """What stands at a place, as the size of what it does."""
            if isinstance(item, Node) and item in values:
                return values[item]
            constant = self._constant(item) if isinstance(item, Node) else item
            if place == _ADDED.get(name) or _AFFINE[name] == "sum":
                return None if constant is None else constant * 0
            return abs(constant) if isinstance(constant, Tensor | float | int) else constant

        operands = [sized(place, item) for place, item in enumerate(node.args)]
        if name == "convolution":
            # From the fourth on they are strides and paddings.
            operands[3:] = node.args[3:]
        if _AFFINE[name] == "sum":
            alpha: Any = node.kwargs.get("alpha", 1)
            moved: Tensor = operands[0] + abs(alpha) * operands[1]
        else:
            target: Any = node.target
            moved = target(*operands)
        return moved

    def _scale(self, node: Node) -> tuple[Tensor, Tensor]:
        """What batch normalisation multiplies by and adds, each (1, channels, 1, 1)."""
        given: Any = node.args
        looked_up: list[Any] = [
            None if item is None else self._constant(item) for item in given[1:5]
        ]
        weight, bias, mean, variance = looked_up
        scale: Tensor = (variance + given[7]).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return scale, shift

    def _normalise(self, node: Node, value: Tensor) -> Tensor:
        scale, shift = (_by_channel(part, value) for part in self._scale(node))
        return value * scale + shift

    def _normalise_magnitude(self, node: Node, radius: Tensor) -> Tensor:
        return radius * _by_channel(self._scale(node)[0].abs(), radius)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *([1] * (like.dim() - 2)))


def _trace(network: nn.Module, example: Tensor) -> GraphModule:
    try:
        with torch.no_grad():
            return make_fx(network)(example)
    except Exception as error:  # whatever the network's own code raises when it is traced
        raise ModelError(
            f"what the network computes cannot be written down: {first_line(error)}",
            hint="Bounds need a forward without decisions on values and without NumPy",
        ) from error


def _operation_name(node: Node) -> str:
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    return str(node.target) if schema is None else schema.name.partition("::")[2]
