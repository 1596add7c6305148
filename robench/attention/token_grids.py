"""Where the patches are among a transformer's tokens."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from robench.errors import ModelError

T = TypeVar("T")

_MOST_PREFIX_TOKENS = 5
"""A class token and four registers; a larger remainder means that the grid was guessed wrong."""


def token_grid(
    tokens: int, size: tuple[int, int], prefix: int | None = None
) -> tuple[int, tuple[int, int]]:
    """Prefix tokens and (rows, columns) of patches, given square patches.

    Args:
        tokens: T, patches and prefix.
        size: (H, W) of the inputs.
        prefix: tokens before the patches if known; None: as few as fit, where patches tile the
            image exactly.

    Raises:
        ModelError: no square patch explains the number of tokens.

    >>> token_grid(197, (224, 224)), token_grid(32, (32, 64))
    ((1, (14, 14)), (0, (4, 8)))
    """
    height, width = size
    for patch in range(1, min(size) + 1):
        rows, columns = height // patch, width // patch
        spare = tokens - rows * columns
        whole = height % patch == 0 and width % patch == 0
        guessed = whole and 0 <= spare <= _MOST_PREFIX_TOKENS
        if spare == prefix or (prefix is None and guessed):
            return spare, (rows, columns)
    known = "" if prefix is None else f", {prefix} of them before the patches"
    raise ModelError(
        f"{tokens} tokens{known} do not form a grid of square patches on {height} x {width} inputs",
        hint="Rollout needs one token for each patch; use Grad-CAM otherwise",
    )


def declared(model: nn.Module, attribute: str, kind: type[T]) -> T | None:
    """What the network says of itself, as timm's transformers do."""
    values = (getattr(module, attribute, None) for module in model.modules())
    return next((value for value in values if isinstance(value, kind)), None)
