"""Attention metrics: known answers, SciPy as reference, and properties."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_values import attention_values, columns_on
from scipy import ndimage
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch import Tensor

import robench.attention.masks
import robench.attention.metrics
from robench.attention.masks import is_empty, largest_cells, top_mask
from robench.attention.metrics import (
    attention_coverage,
    attention_deviation,
    attention_divergence,
    attention_entropy,
    attention_fragments,
    attention_scatter,
    attention_shift,
    connected_parts,
)
from robench.errors import UsageError
from robench.metric_catalogue import METRICS

OF_A_PAIR = [attention_deviation, attention_shift, attention_divergence]
OF_A_MAP = [attention_scatter, attention_entropy, attention_fragments]


def random_maps(n: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Distinct positive cells: no ties, so that geometry alone decides."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.stack([torch.randperm(h * w, generator=generator) for _ in range(n)])
    return (cells.double() + 1).view(n, h, w) ** 2


def one_cell(h: int, w: int, row: int, column: int) -> Tensor:
    maps = torch.zeros(1, h, w, dtype=torch.float64)
    maps[0, row, column] = 0.37
    return maps


def block(h: int, w: int, top: int, left: int, height: int, width: int) -> Tensor:
    maps = torch.zeros(1, h, w, dtype=torch.float64)
    maps[0, top : top + height, left : left + width] = 2.0
    return maps


@pytest.mark.parametrize("module", [robench.attention.masks, robench.attention.metrics])
def test_examples_in_docstrings_run(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0
    assert result.failed == 0


# --- the top eighth --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "h, w, kept", [(8, 8, 8), (7, 7, 7), (4, 4, 2), (1, 1, 1), (3, 3, 2), (5, 9, 6)]
)
def test_top_mask_keeps_the_ceiling_of_an_eighth(h: int, w: int, kept: int) -> None:
    maps = random_maps(3, h, w)
    top = top_mask(maps)
    assert top.flatten(1).sum(1).tolist() == [kept] * 3
    for cells, chosen in zip(maps.flatten(1), top.flatten(1), strict=True):
        assert kept == h * w or cells[chosen].min() > cells[~chosen].max()


def test_ties_go_to_the_lowest_flat_index() -> None:
    assert top_mask(torch.ones(1, 8, 8)).flatten().nonzero().flatten().tolist() == list(range(8))
    maps = torch.tensor([[[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]]])
    assert largest_cells(maps, 2).flatten().nonzero().flatten().tolist() == [1, 2]


def test_cells_to_keep_may_differ_between_maps() -> None:
    maps = random_maps(3, 4, 4)
    kept = largest_cells(maps, torch.tensor([0, 5, 16]))
    assert kept.flatten(1).sum(1).tolist() == [0, 5, 16]


# --- known answers ---------------------------------------------------------------------------


def test_identical_maps_did_not_move() -> None:
    maps = random_maps(5, 6, 7)
    assert attention_deviation(maps, maps).tolist() == [0.0] * 5
    assert attention_shift(maps, maps).tolist() == [0.0] * 5
    torch.testing.assert_close(
        attention_divergence(maps, maps), torch.zeros(5, dtype=torch.float64)
    )


def test_disjoint_maps_are_as_far_apart_as_can_be() -> None:
    left, right = block(8, 8, 0, 0, 8, 1), block(8, 8, 0, 7, 8, 1)
    assert attention_deviation(left, right).item() == 1.0
    assert attention_divergence(left, right).item() == pytest.approx(1.0)
    assert attention_shift(left, right).item() == pytest.approx(7 / math.hypot(7, 7))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_block_shifted_by_k_cells(k: int) -> None:
    maps = block(8, 8, 2, 0, 2, 4)
    moved = maps.roll(k, dims=2)
    shared = 2 * (4 - k)
    assert attention_deviation(maps, moved).item() == pytest.approx(1 - shared / (16 - shared))
    assert attention_shift(maps, moved).item() == pytest.approx(k / math.hypot(7, 7))
    # Of each map, the share outside the other one is k/4: the divergence is exactly that.
    assert attention_divergence(maps, moved).item() == pytest.approx(k / 4)
    for measure in OF_A_MAP:
        torch.testing.assert_close(measure(maps), measure(moved))


def test_corner_to_corner_is_a_shift_of_one() -> None:
    assert attention_shift(one_cell(5, 9, 0, 0), one_cell(5, 9, 4, 8)).item() == pytest.approx(1)


@pytest.mark.parametrize("h, w", [(8, 8), (7, 5), (1, 6)])
def test_uniform_and_one_cell_are_the_ends_of_scatter_and_entropy(h: int, w: int) -> None:
    uniform = torch.full((1, h, w), 0.3, dtype=torch.float64)
    assert attention_scatter(uniform).item() == pytest.approx(1)
    assert attention_entropy(uniform).item() == pytest.approx(1)
    single = one_cell(h, w, h - 1, w // 2)
    assert attention_scatter(single).item() == 0
    assert attention_entropy(single).item() == 0


def test_scatter_of_two_opposite_corners_is_known() -> None:
    maps = one_cell(4, 4, 0, 0) + one_cell(4, 4, 3, 3)
    # Both are half a diagonal away from the centre.
    expected = math.hypot(1.5, 1.5) / math.sqrt((4**2 + 4**2 - 2) / 12)
    assert attention_scatter(maps).item() == pytest.approx(expected)
    assert expected > 1


def test_fragments_of_drawn_maps() -> None:
    corners = torch.zeros(8, 8, dtype=torch.float64)
    corners[::7, ::7] = 1
    corners[3:5, 3:5] = 1  # eight cells in five parts
    diagonal = torch.eye(8, dtype=torch.float64)
    assert attention_fragments(torch.stack([corners, diagonal])).tolist() == [5.0, 1.0]


def test_long_winding_part_is_one() -> None:
    snake = torch.zeros(1, 31, 31, dtype=torch.bool)
    snake[0, ::2] = True
    snake[0, 1::4, -1] = True
    snake[0, 3::4, 0] = True
    assert connected_parts(snake).tolist() == [1]


def test_coverage_is_cut_to_the_objects_area() -> None:
    maps = random_maps(1, 6, 6)
    order = maps.flatten().argsort(descending=True)
    mask = torch.zeros(36, dtype=torch.bool)
    mask[order[:6]] = True  # six of the ten largest cells …
    mask[order[20:24]] = True  # … and four that are small
    assert attention_coverage(maps, mask.view(1, 6, 6)).item() == pytest.approx(0.6)


def test_coverage_of_an_empty_object_is_undefined() -> None:
    maps = random_maps(2, 4, 4)
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[1] = True
    coverage = attention_coverage(maps, masks)
    assert coverage.isnan().tolist() == [True, False]
    assert coverage[1] == 1


# --- undefined and hostile -------------------------------------------------------------------


@pytest.mark.parametrize("hole", [0.0, math.nan, math.inf, -math.inf])
def test_empty_maps_are_undefined_and_leave_the_others_alone(hole: float) -> None:
    maps = random_maps(3, 5, 5)
    bad = maps.clone()
    bad[1] = 0.0
    bad[1, 2, 3] = hole
    assert is_empty(bad).tolist() == [False, True, False]
    for pair_measure in OF_A_PAIR:
        for values in (pair_measure(bad, maps), pair_measure(maps, bad)):
            assert values.isnan().tolist() == [False, True, False]
    for measure in OF_A_MAP:
        assert measure(bad).isnan().tolist() == [False, True, False]
    covered = attention_coverage(bad, torch.ones(3, 5, 5, dtype=torch.bool))
    assert covered.isnan().tolist() == [False, True, False]
    assert top_mask(bad)[1].any().item() is False
    assert attention_values(maps, bad)["attention_empty"].tolist() == [0.0, 1.0, 0.0]


def test_single_cell_maps_have_no_geometry() -> None:
    maps = torch.ones(2, 1, 1)
    for values in (
        attention_shift(maps, maps),
        attention_scatter(maps),
        attention_entropy(maps),
    ):
        assert values.isnan().all()
    assert attention_deviation(maps, maps).tolist() == [0.0, 0.0]
    assert attention_fragments(maps).tolist() == [1.0, 1.0]


def test_no_maps_give_no_values() -> None:
    none = torch.zeros(0, 4, 4)
    values = attention_values(none, none, torch.zeros(0, 4, 4, dtype=torch.bool))
    assert {v.shape for v in values.values()} == {torch.Size([0])}


@pytest.mark.parametrize(
    "maps",
    [
        torch.ones(4, 4),
        torch.ones(1, 1, 4, 4),
        torch.ones(2, 0, 4),
        torch.ones(1, 2, 2, dtype=torch.int64),
        torch.full((1, 2, 2), -0.1),
    ],
)
def test_malformed_maps_are_refused(maps: Tensor) -> None:
    for measure in OF_A_MAP:
        with pytest.raises(UsageError, match="attention maps"):
            measure(maps)


def test_maps_of_two_shapes_are_refused() -> None:
    for measure in OF_A_PAIR:
        with pytest.raises(UsageError, match="same layer"):
            measure(torch.ones(1, 4, 4), torch.ones(1, 4, 5))


@pytest.mark.parametrize(
    "masks", [torch.ones(1, 8, 8, dtype=torch.bool), torch.ones(1, 4, 4)], ids=["size", "type"]
)
def test_masks_that_do_not_fit_are_refused(masks: Tensor) -> None:
    with pytest.raises(UsageError, match="downsample_masks"):
        attention_coverage(torch.ones(1, 4, 4), masks)


# --- references ------------------------------------------------------------------------------


def test_distributions_agree_with_scipy() -> None:
    maps, adv_maps = random_maps(20, 7, 6, seed=1), random_maps(20, 7, 6, seed=2)
    adv_maps[:, :2] = 0
    flat, adv_flat = maps.flatten(1).numpy(), adv_maps.flatten(1).numpy()
    np.testing.assert_allclose(
        attention_divergence(maps, adv_maps).numpy(),
        jensenshannon(flat, adv_flat, base=2, axis=1) ** 2,
        rtol=1e-9,
    )
    np.testing.assert_allclose(
        attention_entropy(adv_maps).numpy(), entropy(adv_flat, axis=1) / np.log(42), rtol=1e-9
    )
    centres = [ndimage.center_of_mass(m.numpy()) for m in maps]
    adv_centres = [ndimage.center_of_mass(m.numpy()) for m in adv_maps]
    np.testing.assert_allclose(
        attention_shift(maps, adv_maps).numpy(),
        np.linalg.norm(np.subtract(centres, adv_centres), axis=1) / np.hypot(6, 5),
        rtol=1e-9,
    )


@pytest.mark.parametrize("density", [0.1, 0.3, 0.45, 0.6])
def test_parts_agree_with_scipy(density: float) -> None:
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(100, 13, 17, generator=generator) < density
    expected = [ndimage.label(m.numpy(), structure=np.ones((3, 3)))[1] for m in masks]
    assert connected_parts(masks).tolist() == expected


# --- properties ------------------------------------------------------------------------------


@st.composite
def map_pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    h, w = draw(st.integers(1, 9)), draw(st.integers(2, 9))
    seeds = draw(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)))
    return random_maps(3, h, w, seeds[0]), random_maps(3, h, w, seeds[1])


@settings(max_examples=20, deadline=None)
@given(map_pairs())
def test_pairs_are_symmetric_and_in_range(pair: tuple[Tensor, Tensor]) -> None:
    maps, adv_maps = pair
    for measure in OF_A_PAIR:
        there, back = measure(maps, adv_maps), measure(adv_maps, maps)
        torch.testing.assert_close(there, back, rtol=1e-9, atol=1e-12)
        assert ((there >= 0) & (there <= 1)).all()


@settings(max_examples=20, deadline=None)
@given(map_pairs())
def test_every_value_is_in_the_catalogues_range(pair: tuple[Tensor, Tensor]) -> None:
    maps, adv_maps = pair
    masks = adv_maps > adv_maps.flatten(1).median(dim=1).values[:, None, None]
    values = attention_values(maps, adv_maps, masks)
    assert set(values) == columns_on("maps")
    for name, value in values.items():
        low, high = METRICS[name].low, METRICS[name].high
        assert value.shape == (3,)
        assert low is None or (value >= low).all(), name
        assert high is None or (value <= high).all(), name


@settings(max_examples=30, deadline=None)
@given(map_pairs(), st.sampled_from([1e-300, 1e-9, 7.0, 1e307]))
def test_scale_does_not_matter(pair: tuple[Tensor, Tensor], scale: float) -> None:
    maps, adv_maps = pair
    maps, adv_maps = maps / maps.max(), adv_maps / adv_maps.max()
    expected = attention_values(maps, adv_maps)
    for name, value in attention_values(maps * scale, adv_maps * (scale / 3)).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(map_pairs(), st.integers(0, 3), st.booleans())
def test_turning_and_flipping_both_maps_changes_nothing(
    pair: tuple[Tensor, Tensor], quarters: int, flip: bool
) -> None:
    def turned(maps: Tensor) -> Tensor:
        maps = maps.rot90(quarters, dims=(1, 2))
        return maps.flip(2) if flip else maps

    maps, adv_maps = pair
    masks = adv_maps > adv_maps.flatten(1).mean(dim=1)[:, None, None]
    expected = attention_values(maps, adv_maps, masks)
    for name, value in attention_values(turned(maps), turned(adv_maps), turned(masks)).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


def test_moving_only_one_map_does_change_something() -> None:
    maps = random_maps(4, 8, 8)
    for measure in OF_A_PAIR:
        assert (measure(maps, maps.rot90(2, dims=(1, 2))) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_is_measured_in_single(dtype: torch.dtype) -> None:
    maps = random_maps(4, 3, 5) / 300
    adv_maps = maps.flip(1)
    for name, value in attention_values(maps.to(dtype), adv_maps.to(dtype)).items():
        assert value.dtype == torch.float32
        expected = attention_values(maps.to(dtype).double(), adv_maps.to(dtype).double())[name]
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
