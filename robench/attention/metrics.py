"""How far attention moved and how it is spread: pure functions on maps.

All take maps (N, h, w), clean and adversarial ones where there are two, floating point, 0 or
larger, at the layer's own resolution, on any device, and return one value a sample, (N,). A map
that is all zero or not finite has no centre, no top cells and no distribution: its value is NaN,
never 0 (see :func:`robench.attention.masks.is_empty`). Malformed maps, or two shapes, are a UsageError.
No function depends on the maps' scale. Definitions after Wu et al., arXiv 1811.09831, whose two
observations are that attacks make attention deviate and scatter.
"""

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from robench.attention.masks import checked_maps, is_empty, largest_cells, top_mask
from robench.errors import UsageError


def attention_deviation(maps: Tensor, adv_maps: Tensor) -> Tensor:
    """1 - IoU(M(A), M(A')): how little the top eighths of two maps overlap.

    Returns:
        (N,) in [0, 1]: 0 the same top cells, 1 disjoint; lower is better. NaN where a map is empty.

    >>> maps = torch.arange(16.0).view(1, 4, 4)
    >>> attention_deviation(maps, maps), attention_deviation(maps, maps.flip(1))
    (tensor([0.]), tensor([1.]))
    """
    maps, adv_maps = _pair(maps, adv_maps)
    top, adv_top = top_mask(maps).flatten(1), top_mask(adv_maps).flatten(1)
    shared = (top & adv_top).sum(dim=1).to(maps.dtype)
    united = (top | adv_top).sum(dim=1)
    return (1 - shared / united).masked_fill(is_empty(maps) | is_empty(adv_maps), torch.nan)


def attention_shift(maps: Tensor, adv_maps: Tensor) -> Tensor:
    """Distance of the two centroids of mass ÷ the diagonal between opposite corner cells.

    Returns:
        (N,) in [0, 1]: 0 unmoved, 1 from corner to corner; lower is better. NaN where a map is
        empty or has a single cell.

    >>> maps = torch.zeros(1, 4, 5)
    >>> maps[0, 0, 0] = 1
    >>> attention_shift(maps, maps.roll((3, 4), dims=(1, 2)))
    tensor([1.])
    """
    maps, adv_maps = _pair(maps, adv_maps)
    height, width = maps.shape[1:]
    moved = _centroid(_distribution(adv_maps)) - _centroid(_distribution(maps))
    diagonal = math.hypot(height - 1, width - 1)
    distance = torch.linalg.vector_norm(moved, dim=1)
    return (distance / diagonal).clamp_max(1) if diagonal else torch.full_like(distance, torch.nan)


def attention_divergence(maps: Tensor, adv_maps: Tensor) -> Tensor:
    """Jensen-Shannon divergence, base 2, of the maps' distributions p and q.

    JSD = (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2 (Lin 1991).

    Returns:
        (N,) in [0, 1] bits: 0 the same, 1 no cell in common; lower is better. NaN where a map is
        empty.

    >>> attention_divergence(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0]]]))
    tensor([1.])
    """
    maps, adv_maps = _pair(maps, adv_maps)
    p, q = _distribution(maps).flatten(1), _distribution(adv_maps).flatten(1)
    both = p + q
    # Cells empty in both maps add nothing; elsewhere the ratio is between 0 and 2.
    safe = torch.where(both == 0, torch.ones_like(both), both)
    terms = torch.special.xlogy(p, 2 * p / safe) + torch.special.xlogy(q, 2 * q / safe)
    bits: Tensor = terms.sum(dim=1) / (2 * math.log(2))
    return bits.clamp(0, 1)


def attention_scatter(maps: Tensor) -> Tensor:
    """RMS distance of the mass to its centroid ÷ that of a uniform map, sqrt((h² + w² - 2) / 12).

    Returns:
        (N,), 0 or larger: 0 one cell, 1 uniform, above 1 where the mass sits at the border; an
        increase under attack is worse. NaN where a map is empty or has a single cell.

    >>> one_cell = torch.zeros(4, 4)
    >>> one_cell[1, 2] = 5
    >>> attention_scatter(torch.stack([one_cell, torch.ones(4, 4)]))
    tensor([0., 1.])
    """
    shares = _distribution(checked_maps(maps))
    rows, columns = _coordinates(shares)
    centre = _centroid(shares)[:, :, None, None]
    squares = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2
    spread = (shares * squares).sum(dim=(1, 2)).sqrt()
    height, width = shares.shape[1:]
    uniform = math.sqrt((height**2 + width**2 - 2) / 12)
    return spread / uniform if uniform else torch.full_like(spread, torch.nan)


def attention_entropy(maps: Tensor) -> Tensor:
    """Shannon entropy of the map's distribution ÷ log(h·w).

    Returns:
        (N,) in [0, 1]: 0 one cell, 1 uniform; an increase under attack is worse. NaN where a map
        is empty or has a single cell.

    >>> attention_entropy(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]]))
    tensor([0.5000, 1.0000])
    """
    shares = _distribution(checked_maps(maps)).flatten(1)
    entropy: Tensor = torch.special.entr(shares).sum(dim=1)
    if shares.shape[1] == 1:
        return torch.full_like(entropy, torch.nan)
    return (entropy / math.log(shares.shape[1])).clamp(0, 1)


def attention_fragments(maps: Tensor) -> Tensor:
    """Number of 8-connected parts of M(A), the top eighth of the map.

    Returns:
        (N,) whole numbers as floats, 1 or larger: 1 one region; an increase under attack is
        worse. NaN where a map is empty.

    >>> maps = torch.zeros(1, 4, 4)
    >>> maps[0, 0, 0], maps[0, 3, 3] = 1, 1
    >>> attention_fragments(maps)
    tensor([2.])
    """
    maps = checked_maps(maps)
    parts = connected_parts(top_mask(maps)).to(maps.dtype)
    return parts.masked_fill(is_empty(maps), torch.nan)


def attention_coverage(maps: Tensor, masks: Tensor) -> Tensor:
    """|M_g(A) ∩ G| ÷ |G|: how much of the object is among the |G| largest cells.

    Args:
        masks: (N, h, w) bool, the object's cells G (see :func:`downsample_masks` of ``masks``).

    Returns:
        (N,) in [0, 1]: 1 complete; higher is better. NaN where a map or the object is empty.

    Raises:
        UsageError: malformed maps, or masks of another shape or type.

    Source: completeness in Wu et al., arXiv 1811.09831.

    >>> maps = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]])
    >>> attention_coverage(maps, torch.tensor([[[True, False], [True, False]]]))
    tensor([0.5000])
    """
    maps = checked_maps(maps)
    if masks.shape != maps.shape or masks.dtype != torch.bool:
        raise UsageError(
            f"masks have shape {tuple(masks.shape)} and type {masks.dtype}, "
            f"the maps have shape {tuple(maps.shape)}",
            hint="Bring boolean masks onto the maps' grid with downsample_masks",
        )
    masks = masks.to(maps.device)
    area = masks.flatten(1).sum(dim=1)
    found = (largest_cells(maps, area) & masks).flatten(1).sum(dim=1)
    return (found.to(maps.dtype) / area).masked_fill(is_empty(maps) | (area == 0), torch.nan)


def attention_empty(maps: Tensor, adv_maps: Tensor) -> Tensor:
    """1 where the clean or the adversarial map is empty, else 0: (N, h, w) twice → (N,).

    >>> attention_empty(torch.ones(1, 2, 2), torch.zeros(1, 2, 2))
    tensor([1.])
    """
    maps, adv_maps = _pair(maps, adv_maps)
    return (is_empty(maps) | is_empty(adv_maps)).to(maps.dtype)


def connected_parts(masks: Tensor) -> Tensor:
    """Number of 8-connected parts of each mask: bool (N, h, w) → int64 (N,).

    >>> connected_parts(torch.tensor([[[True, False, False], [False, True, False]]]))
    tensor([1])
    """
    eight = np.ones((3, 3))
    counts = [ndimage.label(mask, eight)[1] for mask in masks.cpu().numpy()]
    return torch.tensor(counts, dtype=torch.int64, device=masks.device)


def _pair(maps: Tensor, adv_maps: Tensor) -> tuple[Tensor, Tensor]:
    if maps.shape != adv_maps.shape:
        raise UsageError(
            f"clean maps have shape {tuple(maps.shape)}, adversarial ones {tuple(adv_maps.shape)}",
            hint="Compare maps of the same samples at the same layer",
        )
    return checked_maps(maps), checked_maps(adv_maps)


def _distribution(maps: Tensor) -> Tensor:
    """Maps that sum to 1; NaN throughout where a map is empty."""
    # Dividing by the maximum first keeps the sum finite whatever the scale.
    scaled = maps / maps.amax(dim=(1, 2), keepdim=True)
    shares = scaled / scaled.sum(dim=(1, 2), keepdim=True)
    return shares.masked_fill(is_empty(maps)[:, None, None], torch.nan)


def _coordinates(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Row (h, 1) and column (1, w) numbers of the cells."""
    height, width = shares.shape[1:]
    rows = torch.arange(height, device=shares.device, dtype=shares.dtype)
    columns = torch.arange(width, device=shares.device, dtype=shares.dtype)
    return rows[:, None], columns[None, :]


def _centroid(shares: Tensor) -> Tensor:
    """(N, 2): row and column of the centre of mass."""
    rows, columns = _coordinates(shares)
    return torch.stack([(shares * rows).sum(dim=(1, 2)), (shares * columns).sum(dim=(1, 2))], dim=1)
