"""The shortest step to a hyperplane inside the box, against scipy and the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_projections import projection_l1, projection_l2, projection_linf
from scipy.optimize import linprog, minimize
from torch import Tensor

from robench.attacks.fab import project_onto_hyperplane
from robench.threat_models import NORMS, Norm

seeds = st.integers(0, 2**31)
ORDER = {"Linf": np.inf, "L2": 2, "L1": 1}


def _problem(seed: int, count: int, dims: int, border: bool) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, dims, generator=generator, dtype=torch.float64)
    w = torch.randn(count, dims, generator=generator, dtype=torch.float64)
    if border:
        on_border = torch.rand(points.shape, generator=generator) < 0.3
        points = torch.where(on_border, points.round(), points)
        flat = torch.rand(w.shape, generator=generator) < 0.2
        w = torch.where(flat, 0.0, w)
    reach = torch.randn(count, generator=generator, dtype=torch.float64)
    return points, w, (w * points).sum(dim=1) + reach


def _least(points: np.ndarray, w: np.ndarray, b: float, norm: Norm) -> tuple[float, float]:
    """The nearest that the box lets one come to the plane, and the least norm for that."""
    low, high = -points, 1 - points
    gap = b - float(w @ points)
    towards = np.sign(gap) * w
    most = float(np.where(towards > 0, towards * high, towards * low).sum())
    need = min(abs(gap), most)
    d = len(points)
    if norm == "L2":
        solution = minimize(
            lambda s: float(s @ s),
            np.where(towards > 0, high, np.where(towards < 0, low, 0)) * need / max(most, 1e-12),
            jac=lambda s: 2 * s,
            bounds=list(zip(low, high, strict=True)),
            constraints={
                "type": "eq",
                "fun": lambda s: towards @ s - need,
                "jac": lambda s: towards,
            },
            options={"ftol": 1e-14, "maxiter": 500},
        )
        return need, float(np.linalg.norm(solution.x))
    cost = np.concatenate((np.zeros(d), np.ones(1 if norm == "Linf" else d)))
    bound = -np.ones((d, 1)) if norm == "Linf" else -np.eye(d)
    # s ≤ t and −s ≤ t: t bounds every coordinate (Linf), or each its own (L1).
    above = np.vstack((np.hstack((np.eye(d), bound)), np.hstack((-np.eye(d), bound))))
    solution = linprog(
        cost,
        A_ub=above,
        b_ub=np.zeros(2 * d),
        A_eq=np.concatenate((towards, np.zeros(len(cost) - d)))[None],
        b_eq=[need],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * (len(cost) - d)],
    )
    return need, float(solution.fun)


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(NORMS), st.booleans())
def test_steps_are_the_shortest(seed: int, norm: Norm, border: bool) -> None:
    points, w, b = _problem(seed, 3, 5, border)
    steps = project_onto_hyperplane(points, w, b, norm)
    moved = points + steps
    assert bool((moved >= -1e-12).all() & (moved <= 1 + 1e-12).all())
    for row in range(len(points)):
        x, normal, offset = points[row].numpy(), w[row].numpy(), float(b[row])
        need, least = _least(x, normal, offset, norm)
        gained = abs(float(normal @ steps[row].numpy()))
        assert gained == pytest.approx(need, abs=1e-7)
        size = float(np.linalg.norm(steps[row].numpy(), ord=ORDER[norm]))
        if need < abs(offset - float(normal @ x)) - 1e-9:
            continue  # the plane misses the box: as far as it goes, whatever the length
        assert size <= least + 1e-6


@settings(max_examples=20, deadline=None)
@given(seeds, st.sampled_from(NORMS))
def test_steps_equal_the_references(seed: int, norm: Norm) -> None:
    reference: Callable[[Tensor, Tensor, Tensor], Tensor] = {
        "Linf": projection_linf,
        "L2": projection_l2,
        "L1": projection_l1,
    }[norm]
    points, w, b = _problem(seed, 8, 20, border=False)
    theirs = reference(points.float(), w.float(), b.float())
    mine = project_onto_hyperplane(points.float(), w.float(), b.float(), norm)
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_flat_and_unreachable_planes_give_finite_steps(norm: Norm) -> None:
    points = torch.tensor([[0.2, 0.5, 1.0], [0.2, 0.5, 1.0], [0.0, 0.0, 0.0]])
    w = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [-1.0, 0.0, 0.0]])
    b = torch.tensor([1.0, 100.0, 100.0])
    steps = project_onto_hyperplane(points, w, b, norm)
    torch.testing.assert_close(
        steps, torch.tensor([[0.0, 0.0, 0.0], [0.8, 0.0, -1.0], [0.0, 0.0, 0.0]])
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_point_on_the_plane_stays(norm: Norm) -> None:
    points, w, _ = _problem(3, 6, 10, border=False)
    steps = project_onto_hyperplane(points, w, (w * points).sum(dim=1), norm)
    assert float(steps.abs().max()) < 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_several_points_of_a_plane_step_as_each_alone(norm: Norm) -> None:
    points, w, b = (part.float() for part in _problem(4, 6, 10, border=True))
    others = points.flip(0)
    together = project_onto_hyperplane(torch.stack((points, others)), w, b, norm)
    alone = [project_onto_hyperplane(part, w, b, norm) for part in (points, others)]
    assert torch.equal(together, torch.stack(alone))
