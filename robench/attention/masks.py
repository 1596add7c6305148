"""The cells of a map that count: its largest ones, and those that the object covers."""

import torch
from torch import Tensor

from robench import top_cells
from robench.errors import DataError, UsageError
from robench.probes import at_least_float32


def checked_maps(maps: Tensor) -> Tensor:
    """``maps`` in at least single precision.

    Cells that are not finite pass: they make a map empty (:func:`is_empty`), not wrong.

    Raises:
        UsageError: not a floating-point (N, h, w) with at least one cell, or negative somewhere.
    """
    if maps.ndim != 3 or not maps.is_floating_point() or 0 in maps.shape[1:]:
        raise UsageError(
            f"attention maps have shape {tuple(maps.shape)} and type {maps.dtype}",
            hint="Give floating-point maps (N, h, w)",
        )
    if bool(((maps < 0) & maps.isfinite()).any()):
        raise UsageError("attention maps have negative cells", hint="Maps are 0 or larger")
    return at_least_float32(maps)


def is_empty(maps: Tensor) -> Tensor:
    """Which maps (N, h, w), 0 or larger, have nothing to measure: bool (N,).

    Those are all zero, or not finite somewhere.

    >>> is_empty(torch.stack([torch.zeros(2, 2), torch.eye(2), torch.full((2, 2), torch.nan)]))
    tensor([ True, False,  True])
    """
    flat = checked_maps(maps).flatten(1)
    return ~(flat.isfinite().all(dim=1) & (flat > 0).any(dim=1))


def largest_cells(maps: Tensor, count: Tensor | int) -> Tensor:
    """Mask of the ``count`` largest cells of each map; equal cells by lowest flat index.

    Of maps (N, h, w), 0 or larger, and a count for all or each, (N,); bool (N, h, w), nowhere true
    for an empty map.

    >>> largest_cells(torch.tensor([[[1.0, 3.0], [2.0, 3.0]]]), 3).int()
    tensor([[[0, 1],
             [1, 1]]], dtype=torch.int32)
    """
    maps = checked_maps(maps)
    counts = count.cpu().numpy() if isinstance(count, Tensor) else count
    kept = torch.from_numpy(top_cells.largest_cells(maps.detach().cpu().numpy(), counts))
    return kept.to(maps.device) & ~is_empty(maps)[:, None, None]


def top_mask(maps: Tensor) -> Tensor:
    """M(A): the ceil(h·w / 8) largest cells of each map, equal cells by lowest flat index.

    Of maps (N, h, w), 0 or larger; bool (N, h, w), nowhere true for an empty map. One with fewer
    positive cells than that is filled up with zero cells, in the same order.

    Source: Wu et al., arXiv 1811.09831 (the 8 largest of 64 cells).

    >>> top_mask(torch.arange(16.0).view(1, 4, 4)).nonzero().tolist()
    [[0, 3, 2], [0, 3, 3]]
    """
    maps = checked_maps(maps)
    cells = maps.shape[1] * maps.shape[2]
    return largest_cells(maps, -(-cells // top_cells.TOP_SHARE))


def downsample_masks(
    masks: Tensor, grid: tuple[int, int], *, image_size: tuple[int, int] | None = None
) -> Tensor:
    """Object masks on the cells of a map.

    A cell belongs to the object if at least half of its area does. An object that fills no cell
    by half keeps the one it covers most (the first of several), so that a small object does not
    vanish; an empty mask stays empty.

    Args:
        masks: (N, H, W) bool, true on the object.
        grid: (h, w) of the maps; need not divide (H, W).
        image_size: (H, W) of the images; masks of another size are an error.

    Returns:
        (N, h, w) bool.

    Raises:
        DataError: the masks do not have the images' size.
        UsageError: not a bool (N, H, W), or a grid without cells.

    >>> masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    >>> masks[0, :2, :3] = True
    >>> downsample_masks(masks, (2, 2)).int()
    tensor([[[1, 1],
             [0, 0]]], dtype=torch.int32)
    """
    if masks.ndim != 3 or masks.dtype != torch.bool or 0 in masks.shape[1:]:
        raise UsageError(
            f"masks have shape {tuple(masks.shape)} and type {masks.dtype}",
            hint="Give boolean masks (N, H, W)",
        )
    if min(grid) < 1:
        raise UsageError(f"a grid of {grid[0]} x {grid[1]} has no cells")
    height, width = int(masks.shape[1]), int(masks.shape[2])
    if image_size is not None and (height, width) != tuple(image_size):
        raise DataError(
            f"masks are {height} x {width}, images {image_size[0]} x {image_size[1]}",
            hint="Give every mask its image's size",
        )
    rows = _overlaps(height, grid[0], masks.device)
    columns = _overlaps(width, grid[1], masks.device)
    covered = rows @ masks.to(rows.dtype) @ columns.T
    # Each cell measures height · width in the integer units of `_overlaps`: the test is exact.
    halves = (2 * covered >= height * width).flatten(1)
    flat = covered.flatten(1)
    most = torch.zeros_like(halves).scatter_(1, flat.argmax(dim=1, keepdim=True), True)
    vanishing = masks.flatten(1).any(dim=1) & ~halves.any(dim=1)
    return torch.where(vanishing[:, None], most, halves).view(-1, *grid)


def _overlaps(pixels: int, cells: int, device: torch.device) -> Tensor:
    """(cells, pixels): length that a cell and a pixel share, in 1/cells of a pixel: whole numbers."""
    exact = torch.float32 if device.type == "mps" else torch.float64
    pixel = torch.arange(pixels, device=device)
    cell = torch.arange(cells, device=device)[:, None]
    ends = torch.minimum((cell + 1) * pixels, (pixel + 1) * cells)
    starts = torch.maximum(cell * pixels, pixel * cells)
    return (ends - starts).clamp_min(0).to(exact)
