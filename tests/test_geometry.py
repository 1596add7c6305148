from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from robench import geometry, seeding
from robench.threat_models import NORMS, Norm

norms = st.sampled_from(NORMS)
seeds = st.integers(0, 2**31)
radii = st.sampled_from([1e-3, 0.03, 0.2, 1.0, 4.0])


def _points(seed: int, count: int = 5, dims: int = 6) -> tuple[Tensor, Tensor]:
    """Points around inputs, some inputs and points exactly on the box's border."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 1, 1, dims, generator=generator)
    inputs = torch.where(
        torch.rand(inputs.shape, generator=generator) < 0.3, inputs.round(), inputs
    )
    points = inputs + torch.randn(inputs.shape, generator=generator) * 0.7
    untouched = torch.rand(points.shape, generator=generator) < 0.2
    return torch.where(untouched, inputs, points), inputs


@settings(deadline=None)
@given(seeds, norms, radii)
def test_projections_are_inside_ball_and_box(seed: int, norm: Norm, eps: float) -> None:
    points, inputs = _points(seed)
    inside = geometry.project(points, inputs, norm, eps)
    assert bool((inside >= 0).all() & (inside <= 1).all())
    size = geometry.norm_of((inside - inputs).double(), norm)
    assert bool((size <= eps + geometry.norm_tolerance(norm, 6)).all())


@settings(deadline=None)
@given(seeds, norms, radii)
def test_projecting_twice_changes_nothing(seed: int, norm: Norm, eps: float) -> None:
    points, inputs = _points(seed)
    once = geometry.project(points, inputs, norm, eps)
    torch.testing.assert_close(
        geometry.project(once, inputs, norm, eps), once, atol=1e-6, rtol=1e-6
    )


@settings(deadline=None)
@given(seeds, norms)
def test_points_inside_stay_where_they_are(seed: int, norm: Norm) -> None:
    points, inputs = _points(seed)
    points = points.clamp(0, 1)
    radius = geometry.norm_of(points - inputs, norm) * 1.001 + 1e-6
    torch.testing.assert_close(
        geometry.project(points, inputs, norm, radius), points, atol=1e-6, rtol=0
    )


@settings(deadline=None)
@given(seeds, st.sampled_from([0.05, 0.4, 1.5]))
def test_l1_projection_is_the_nearest_point(seed: int, eps: float) -> None:
    """Against a general solver: split δ = u − v, u, v ≥ 0, Σ(u + v) ≤ ε, box on x + u − v."""
    points, inputs = _points(seed, count=2, dims=4)
    mine = geometry.project(points, inputs, "L1", eps).flatten(1).double().numpy()
    for row in range(2):
        x = inputs[row].flatten().double().numpy()
        p = points[row].flatten().double().numpy()
        d = len(x)
        solution = minimize(
            lambda uv, x=x, p=p, d=d: float(((x + uv[:d] - uv[d:] - p) ** 2).sum()),
            np.zeros(2 * d),
            jac=lambda uv, x=x, p=p, d=d: np.concatenate(
                (2 * (x + uv[:d] - uv[d:] - p), -2 * (x + uv[:d] - uv[d:] - p))
            ),
            bounds=[(0, 1 - value) for value in x] + [(0, value) for value in x],
            constraints={"type": "ineq", "fun": lambda uv: eps - uv.sum()},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        best = float(((x + solution.x[:d] - solution.x[d:] - p) ** 2).sum())
        found = float(((mine[row] - p) ** 2).sum())
        assert found <= best + 1e-5


@settings(deadline=None)
@given(seeds, radii)
def test_linf_and_l2_projections_follow_their_formulas(seed: int, eps: float) -> None:
    points, inputs = _points(seed)
    delta = points - inputs
    linf = (inputs + delta.clamp(-eps, eps)).clamp(0, 1)
    torch.testing.assert_close(geometry.project(points, inputs, "Linf", eps), linf)
    shrink = (eps / delta.flatten(1).norm(dim=1)).clamp(max=1.0)
    l2 = (inputs + delta * shrink.nan_to_num(1.0)[:, None, None, None]).clamp(0, 1)
    torch.testing.assert_close(geometry.project(points, inputs, "L2", eps), l2)


@settings(deadline=None)
@given(seeds, norms)
def test_a_radius_for_each_sample(seed: int, norm: Norm) -> None:
    points, inputs = _points(seed)
    radius = torch.tensor([0.1, 0.2, 0.4, 0.8, 1.6])
    together = geometry.project(points, inputs, norm, radius)
    for row, eps in enumerate(radius.tolist()):
        alone = geometry.project(points[row : row + 1], inputs[row : row + 1], norm, eps)
        torch.testing.assert_close(together[row : row + 1], alone)


@settings(deadline=None)
@given(seeds, norms)
def test_norms_equal_torchs(seed: int, norm: Norm) -> None:
    delta = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    expected = torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)
    torch.testing.assert_close(geometry.norm_of(delta, norm), expected)
    scaled = geometry.norm_of(geometry.unit(delta, norm), norm)
    torch.testing.assert_close(scaled, torch.ones(4))


@settings(deadline=None)
@given(seeds, norms)
def test_steepest_reaches_the_dual_norm(seed: int, norm: Norm) -> None:
    """Hölder: max ⟨g, d⟩ over ‖d‖ ≤ 1 is the dual norm of g."""
    gradient = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    direction = geometry.steepest(gradient, norm)
    torch.testing.assert_close(geometry.norm_of(direction, norm), torch.ones(4))
    dual = {"Linf": 1, "L2": 2, "L1": torch.inf}[norm]
    gain = (gradient * direction).flatten(1).sum(dim=1)
    torch.testing.assert_close(gain, torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1))


@pytest.mark.parametrize("norm", NORMS)
def test_zero_has_no_direction(norm: Norm) -> None:
    zeros = torch.zeros(2, 1, 2, 2)
    assert not bool(geometry.steepest(zeros, norm).any())
    assert not bool(geometry.unit(zeros, norm).any())


@pytest.mark.parametrize("norm", NORMS)
def test_random_points_are_inside_and_fill_the_ball(norm: Norm) -> None:
    inputs = torch.full((2000, 1, 2, 2), 0.5)
    keys = seeding.sample_keys(0, [str(index) for index in range(len(inputs))])
    eps = 0.3
    points = geometry.random_point(inputs, norm, eps, keys)
    size = geometry.norm_of((points - inputs).double(), norm)
    assert bool((size <= eps + geometry.norm_tolerance(norm, 4)).all())
    if norm != "L1":  # uniform in the ball: half of the volume lies within 2^(−1/d) of ε
        share = float((size <= eps * 0.5 ** (1 / 4)).float().mean())
        assert abs(share - 0.5) < 4 * 0.5 / len(inputs) ** 0.5


def test_the_tolerance_covers_rounding_and_nothing_visible() -> None:
    for norm in NORMS:
        slack = geometry.norm_tolerance(norm, 3 * 32 * 32)
        assert 0 < slack < 1e-3
    inputs = torch.rand(500, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for norm, eps in (("Linf", 8 / 255), ("L2", 0.5), ("L1", 12.0)):
        noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(1))
        points = geometry.project(inputs + noise, inputs, norm, eps)
        size = geometry.norm_of((points - inputs).double(), norm)
        assert bool((size <= eps + geometry.norm_tolerance(norm, 192)).all())
        assert float(size.max()) > eps * 0.999
