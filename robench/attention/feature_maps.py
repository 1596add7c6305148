"""The feature map of one layer: which layer, and how to catch it during a forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robench.attention.token_grids import declared, token_grid
from robench.errors import ModelError, UsageError
from robench.probes import (
    at_least_float32,
    checked_logits,
    forward_hooks,
    layer_names,
    resolve_layer,
    undisturbed,
)


def find_spatial_layer(model: nn.Module, inputs: Tensor) -> str:
    """The last module to finish whose output is a feature map with more than one cell, and on the way to
    the logits: no map that a module hands on beside what it made of it, as backbones do.

    Where layers put out tokens (N, T, C), as a transformer's do, a map is either the tokens' grid
    or one that has the inputs' aspect, and besides it has to be the whole that the logits are made
    of: they depend on the inputs through it alone, and on its patches. That is no matrix inside an
    attention, no part that a residual connection leads past, and no last layer of which the class
    token alone is read. Patches that are only embedded do not count: such a map is the image.

    Found by forward passes of the first of (N, C, H, W) inputs, N ≥ 1, in evaluation mode.

    Returns:
        The layer's dotted name, relative to the wrapped network where ``model`` is a wrapper.

    Raises:
        ModelError: there is no such module.
    """
    names = layer_names(model)
    probe = inputs[:1]
    prefix = declared(model, "num_prefix_tokens", int)
    maps: list[nn.Module] = []
    grids: list[nn.Module] = []

    def remember(module: nn.Module, _args: Any, output: Any) -> None:
        features = _feature_map(output)
        if features is None or features.shape[0] != probe.shape[0]:
            return
        try:
            height, width = as_map(features, probe, prefix).shape[2:]
        except ModelError:  # no grid
            return
        if height * width > 1:
            maps.extend([module] * (features.ndim == 4))
            if features.ndim == 3 or _has_aspect(features, probe):
                grids.append(module)

    with undisturbed(model), torch.no_grad():
        model.eval()
        with forward_hooks(list(names.values()), after=remember):
            model(probe.clone())
    called = {module: name for name, module in reversed(names.items())}
    has_tokens = any(module not in maps for module in grids)
    for module in dict.fromkeys(reversed(grids if has_tokens else maps)):
        past, through = _ways(model, called[module], probe)
        if through is not None and (
            not has_tokens or _is_the_whole(model, called[module], probe, prefix, past, through)
        ):
            return called[module]
    raise ModelError(
        "no layer's tokens are a map of the image that the logits are made of"
        if has_tokens
        else "no layer on the way to the logits puts out a spatial feature map (N, C, h, w)",
        hint="Use rollout for a transformer, or method = 'none' in the card's attention",
    )


def _ways(model: nn.Module, layer: str, inputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The largest logit's gradient in the inputs past this layer's output, and in that output; None:
    there is no such way, or no gradient at all."""
    with torch.inference_mode(False), torch.enable_grad():
        probe = inputs.detach().clone().requires_grad_()
        with tapped(model, layer, leaf=True) as feature_map:
            model.eval()
            score = checked_logits(model(probe.clone()), len(probe)).amax(dim=1).sum()
        if not score.requires_grad:
            return None, None
        past, through = torch.autograd.grad(score, (probe, feature_map()), allow_unused=True)
    return past, through


def _is_the_whole(
    model: nn.Module,
    layer: str,
    inputs: Tensor,
    prefix: int | None,
    past: Tensor | None,
    through: Tensor,
) -> bool:
    """Whether the logits depend on the inputs through the patches of this layer's output alone."""
    if past is not None and bool(past.any()):
        return False
    # Where all gradients vanish, as behind a softmax that is saturated, nothing is known.
    reached = bool(as_map(through, inputs, prefix).any()) or not bool(through.any())
    return reached and not _is_affine(model, layer, inputs)


def _is_affine(model: nn.Module, layer: str, inputs: Tensor) -> bool:
    """Whether the output is a linear function of the pixels, to single precision."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand((2, *inputs.shape[1:]), generator=generator).to(inputs)
    with torch.no_grad(), tapped(model, layer) as feature_map:
        model.eval()
        model(torch.stack((first, second, (first + second) / 2)))
    one, other, between = at_least_float32(feature_map())
    return bool(torch.allclose((one + other) / 2, between, rtol=1e-3, atol=1e-5))


def as_map(features: Tensor, inputs: Tensor, prefix: int | None = None) -> Tensor:
    """``features`` as (N, C, h, w).

    Hierarchical transformers keep theirs as (N, h, w, C). A map is read so only if that reading
    has the inputs' aspect, within a cell's rounding, and the usual one has not. Tokens (N, T, C)
    become the grid of their patches, without the ``prefix`` tokens before them (None: inferred).
    (N, C, 1) are channels after pooling, never tokens.

    Raises:
        ModelError: the tokens form no grid.
    """
    size = (int(inputs.shape[2]), int(inputs.shape[3]))
    if features.ndim == 3 and features.shape[2] == 1:
        raise ModelError("the layer puts out one value for each of its channels, and no map")
    if features.ndim == 3:
        before, grid = token_grid(int(features.shape[1]), size, prefix)
        patches = features[:, before:].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *grid)
    first, second, third = features.shape[1:]
    if _fits(first, second, size) and not _fits(second, third, size):
        return features.permute(0, 3, 1, 2)
    return features


def _has_aspect(features: Tensor, inputs: Tensor) -> bool:
    first, second, third = features.shape[1:]
    size = (int(inputs.shape[2]), int(inputs.shape[3]))
    return _fits(first, second, size) or _fits(second, third, size)


def _fits(rows: int, columns: int, size: tuple[int, int]) -> bool:
    height, width = size
    return abs(rows * width - columns * height) <= max(height, width)


@contextmanager
def tapped(model: nn.Module, layer: str, *, leaf: bool = False) -> Iterator[Callable[[], Tensor]]:
    """Catch the feature map of ``layer`` in the passes inside; ``model`` stays as it was.

    With ``leaf`` the graph is cut at the feature map, which becomes a leaf: nothing before the
    layer is then recorded, and whoever runs the pass starts it with gradients off.

    Yields:
        A function that gives the 4-D tensor, or else tokens (N, T, C), as the layer put them out
        in its last call (see :func:`as_map`); a ModelError if it did not run, or put out neither.

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
    """The first 4-D tensor in what a layer returned, else the first of three axes."""
    place = _place(output)
    return None if place is None else _parts(output)[place]


def _place(output: Any) -> Any | None:
    for axes in (4, 3):
        for place, part in _parts(output).items():
            if isinstance(part, Tensor) and part.ndim == axes and part.is_floating_point():
                return place
    return None


def _parts(output: Any) -> dict[Any, Any]:
    """What a layer returned, by key or place; a tensor is its own only part."""
    if isinstance(output, dict):
        return output
    return dict(enumerate(output if isinstance(output, (tuple, list)) else (output,)))


def _replace_feature_map(output: Any, new: Tensor) -> Any:
    """What the layer returned, with ``new`` in the place of its feature map."""
    if isinstance(output, Tensor):
        return new
    replaced = {**_parts(output), _place(output): new}
    if isinstance(output, dict):
        return type(output)(replaced)
    # Named tuples take their fields one by one.
    values = replaced.values()
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
