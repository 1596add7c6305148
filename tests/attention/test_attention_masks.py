"""Object masks on a map's grid."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.attention.masks import downsample_masks
from robench.errors import DataError, UsageError


def test_the_images_own_grid_changes_nothing() -> None:
    masks = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(downsample_masks(masks, (8, 8)), masks)


def test_half_a_cell_is_enough_and_less_is_not() -> None:
    masks = torch.zeros(1, 4, 8, dtype=torch.bool)
    masks[0, 0:2, 0:4] = True  # 8 of the left cell's 16 pixels
    masks[0, 0, 4:8] = True
    masks[0, 1, 4:7] = True  # 7 of the right cell's
    assert downsample_masks(masks, (1, 2)).tolist() == [[[True, False]]]


def test_small_object_keeps_its_best_cell() -> None:
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, 5, 6] = True
    masks[1, 3, 3:5] = True  # one pixel in each of two cells: the first
    small = downsample_masks(masks, (2, 2))
    assert small.tolist()[0] == [[False, False], [False, True]]
    assert small.tolist()[1] == [[True, False], [False, False]]
    assert not small[2].any()


def test_grid_that_does_not_divide_the_image() -> None:
    masks = torch.zeros(1, 1, 5, dtype=torch.bool)
    masks[0, 0, :3] = True
    # Cells of 2.5 pixels: the first is full, the second covered by 0.5 of 2.5.
    assert downsample_masks(masks, (1, 2)).tolist() == [[[True, False]]]
    masks[0, 0, :4] = True  # 1.5 of 2.5
    assert downsample_masks(masks, (1, 2)).tolist() == [[[True, True]]]
    # Finer than the image: every cell takes the pixel that it lies in.
    fine = downsample_masks(torch.tensor([[[True, False]]]), (1, 6))
    assert fine.tolist() == [[[True, True, True, False, False, False]]]


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(0, 1000),
)
def test_objects_never_vanish_and_whole_images_stay_whole(
    size: tuple[int, int], grid: tuple[int, int], seed: int
) -> None:
    masks = torch.rand(4, *size, generator=torch.Generator().manual_seed(seed)) < 0.3
    small = downsample_masks(masks, grid)
    assert small.shape == (4, *grid)
    assert torch.equal(small.flatten(1).any(1), masks.flatten(1).any(1))
    assert downsample_masks(torch.ones(1, *size, dtype=torch.bool), grid).all()


@pytest.mark.parametrize(
    "masks", [torch.ones(2, 4, 4), torch.ones(4, 4, dtype=torch.bool)], ids=["float", "two axes"]
)
def test_malformed_masks_are_refused(masks: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="boolean masks"):
        downsample_masks(masks, (2, 2))


def test_masks_of_another_size_than_the_images_are_refused() -> None:
    masks = torch.ones(2, 8, 8, dtype=torch.bool)
    with pytest.raises(DataError, match="masks are 8 x 8, images 32 x 32"):
        downsample_masks(masks, (4, 4), image_size=(32, 32))


def test_grid_without_cells_is_refused() -> None:
    with pytest.raises(UsageError, match="no cells"):
        downsample_masks(torch.ones(2, 8, 8, dtype=torch.bool), (0, 4))
