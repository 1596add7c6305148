"""The feature map of one layer: which layer, and how to catch it during a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import ModelError, UsageError
from robench.probes import forward_hooks, layer_names, resolve_layer, undisturbed


def find_spatial_layer(model: nn.Module, inputs: Tensor) -> str:
    """The last module to finish whose output is a feature map with more than one cell.

    Found by one forward pass of the first of (N, C, H, W) inputs, N ≥ 1, in evaluation mode.

    Returns:
        The layer's dotted name, relative to the wrapped network where ``model`` is a wrapper.

    Raises:
        ModelError: no module puts out a 4-D tensor with more than one cell.
    """
    names = layer_names(model)
    found: list[nn.Module] = []

    def remember(module: nn.Module, _args: Any, output: Any) -> None:
        feature_map = _feature_map(output)
        if feature_map is None:
            return
        height, width = channels_first(feature_map, inputs).shape[2:]
        if height * width > 1:
            found.append(module)

    with undisturbed(model), torch.no_grad():
        model.eval()
        with forward_hooks(list(names.values()), after=remember):
            model(inputs[:1])
    if not found:
        raise ModelError(
            "no layer puts out a spatial feature map (N, C, h, w)",
            hint="Use rollout for a transformer, or method = 'none' in the card's attention",
        )
    return next(name for name, module in names.items() if module is found[-1])


def channels_first(feature_map: Tensor, inputs: Tensor) -> Tensor:
    """``feature_map`` as (N, C, h, w).

    Hierarchical transformers keep theirs as (N, h, w, C). A map is read so only if that reading
    has the inputs' aspect, within a cell's rounding, and the usual one has not.
    """
    height, width = inputs.shape[2:]

    def fits(rows: int, columns: int) -> bool:
        return abs(rows * width - columns * height) <= max(height, width)

    first, second, third = feature_map.shape[1:]
    if fits(first, second) and not fits(second, third):
        return feature_map.permute(0, 3, 1, 2)
    return feature_map


@contextmanager
def tapped(model: nn.Module, layer: str, *, leaf: bool = False) -> Iterator[Callable[[], Tensor]]:
    """Catch the feature map of ``layer`` in the passes inside; ``model`` stays as it was.

    With ``leaf`` the graph is cut at the feature map, which becomes a leaf: nothing before the
    layer is then recorded, and whoever runs the pass starts it with gradients off.

    Yields:
        A function that gives the 4-D tensor as the layer put it out in its last call (see
        :func:`channels_first`); a ModelError if it did not run, or put out none.

    Raises:
        UnknownNameError: no such layer; near misses are listed.
    """
    name, module = resolve_layer(model, layer)
    caught: list[Tensor] = []

    def remember(_module: nn.Module, _args: Any, output: Any) -> Any:
        feature_map = _feature_map(output)
        if feature_map is None:
            return None
        if leaf:
            torch.set_grad_enabled(True)
            feature_map = feature_map.detach().requires_grad_()
        caught[:] = [feature_map]
        # A copy, because what follows (a ReLU in place, say) may overwrite its input.
        return _replace_feature_map(output, feature_map.clone())

    def feature_map_of_pass() -> Tensor:
        if not caught:
            raise ModelError(
                "the layer did not put out a feature map (N, C, h, w) in this pass",
                where=name,
                hint="Choose a layer whose output is spatial, or none to find one automatically",
            )
        return caught[0]

    with undisturbed(model), forward_hooks([module], after=remember):
        yield feature_map_of_pass


def checked_targets(targets: Tensor, logits: Tensor) -> Tensor:
    """``targets`` as int64 (N,) beside ``logits``.

    Raises:
        UsageError: another shape or type, or a class that the logits do not have.
    """
    n, classes = logits.shape
    if targets.shape != (n,) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise UsageError(
            f"targets have shape {tuple(targets.shape)} and type {targets.dtype}",
            hint=f"Give one class number for each of the {n} inputs",
        )
    targets = targets.to(logits.device, torch.int64)
    if n and (int(targets.min()) < 0 or int(targets.max()) >= classes):
        raise UsageError(
            f"targets from {int(targets.min())} to {int(targets.max())}, "
            f"but the model has {classes} classes"
        )
    # A tensor made in inference mode cannot take part in a backward pass.
    return targets.clone() if targets.is_inference() else targets


def _feature_map(output: Any) -> Tensor | None:
    """The first 4-D tensor in what a layer returned."""
    return next((part for part in _parts(output).values() if _is_map(part)), None)


def _parts(output: Any) -> dict[Any, Any]:
    """What a layer returned, by key or place; a tensor is its own only part."""
    if isinstance(output, dict):
        return output
    return dict(enumerate(output if isinstance(output, (tuple, list)) else (output,)))


def _is_map(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 4 and part.is_floating_point()


def _replace_feature_map(output: Any, new: Tensor) -> Any:
    """What the layer returned, with ``new`` in the place of its first 4-D tensor."""
    if isinstance(output, Tensor):
        return new
    parts = _parts(output)
    replaced = {**parts, next(key for key, part in parts.items() if _is_map(part)): new}
    if isinstance(output, dict):
        return type(output)(replaced)
    # Named tuples take their fields one by one.
    values = replaced.values()
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
