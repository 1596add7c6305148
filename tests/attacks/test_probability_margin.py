"""PMA: its slopes against autograd, where they would underflow, and what each step ascends."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from attack_models import LinearModel, PlainQuery, linear_problem, run_search
from torch import Tensor

from robench.attacks.base import Slots
from robench.attacks.probability_margin import PMA, probability_margin
from robench.threat_models import Norm, ThreatModel

EPS = 0.01


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_slopes_are_those_of_the_probabilities_over_what_is_right_of_the_label(
    classes: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (64,), generator=generator)
    leaf = logits.clone().requires_grad_()
    p = leaf.softmax(dim=1)
    own = p.gather(1, labels[:, None]).squeeze(1)
    expected = p.scatter(1, labels[:, None], -1.0).amax(dim=1) - own
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    value, direction = probability_margin(logits, labels, labels)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(direction * (1 - own[:, None]).detach(), slope)


@pytest.mark.parametrize("gap", [120.0, 1e6])
def test_no_gap_between_logits_makes_the_slope_vanish(gap: float) -> None:
    """Of a confident answer softmax's own gradient is zero; the direction is the margin's."""
    logits, labels = torch.tensor([[-60.0, gap, gap - 120.0, -65.0]]), torch.tensor([1])
    leaf = logits.clone().requires_grad_()
    p = leaf.softmax(dim=1)[0]
    (lost,) = torch.autograd.grad(p[2] - p[1], leaf)
    assert torch.equal(lost, torch.zeros_like(lost))
    _, direction = probability_margin(logits, labels, labels)
    torch.testing.assert_close(direction / direction.max(), torch.tensor([[0.0, -1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_scaled_logits_are_broken_alike(scale: float) -> None:
    """Logits so far apart mask the gradient of every loss that goes by probabilities."""
    model, inputs, labels, distance, threat = linear_problem("Linf", 2)
    scaled = LinearModel(model.weight * scale, model.bias * scale)
    found = run_search(PMA(threat), scaled, inputs, labels).found
    assert torch.equal(found.broken, distance < threat.radius)
    assert not bool(found.zero_gradient.any())


def _walk(norm: Norm, search: int, steps: int, **options: Any) -> tuple[list[Tensor], Tensor]:
    """Perturbations (16, 8) that a search of a two-class linear model visits; its weight (8,)."""
    weight = torch.tensor([[0.0] * 8, [3.0, -2.0, 1.0, -1.0, 0.5, 2.0, -0.25, 1.0]])
    model = LinearModel(weight, torch.tensor([50.0, 0.0]))  # class 0, far from the boundary
    inputs = 0.3 + 0.4 * torch.rand(16, 1, 2, 4, generator=torch.Generator().manual_seed(1))
    labels = torch.zeros(16, dtype=torch.int64)
    slots = Slots(inputs, labels, model(inputs), torch.arange(16), torch.full((16,), search))
    attack, query = PMA(ThreatModel.of(norm, EPS), steps=steps, **options), PlainQuery(model)
    state = attack.start(query, slots)
    while not bool(attack.finished(state).any()):
        state = attack.step(query, state)
    return [(seen - inputs).flatten(1) for seen in query.seen], weight[1]


@pytest.mark.parametrize("search", [0, 1])
def test_the_first_step_goes_the_wrong_way_and_all_others_the_right_one(search: int) -> None:
    points, weight = _walk("L2", search, steps=8)
    assert len(points) == 9
    rises = [((after - before) @ weight) for before, after in pairwise(points)]
    assert bool((rises[0] < 0).all())
    assert all(bool((rise > -1e-6).all()) for rise in rises[1:])
    assert bool((rises[1] > 0).all())


def test_steps_shrink_along_a_cosine_in_each_half() -> None:
    """From 2ε to nothing, wherever the ball's border does not cut them short."""
    points, _ = _walk("Linf", 0, steps=10)
    whole = 0
    for step, (before, after) in enumerate(pairwise(points)):
        length = EPS * (1 + math.cos(math.pi * (step % 5) / 5))
        inside = after.abs() < EPS - 1e-6
        whole += int(inside.sum())
        moved = (after - before).abs()
        torch.testing.assert_close(
            moved[inside], torch.full_like(moved[inside], length), rtol=0, atol=1e-6
        )
        assert bool((moved <= length + 1e-6).all())
    assert whole > 20


@pytest.mark.parametrize(
    ("search", "options"), [(2, {"restarts": 2}), (0, {"output_starts": "all"})]
)
def test_restarts_leave_their_start_in_directions_of_their_own(
    search: int, options: dict[str, Any]
) -> None:
    """Along w·z a two-class model can only go up or down; half of the draws go each way."""
    points, weight = _walk("L2", search, steps=8, **options)
    first = (points[1] - points[0]) @ weight
    assert bool((first > 0).any())
    assert bool((first < 0).any())


def test_two_searches_a_restart() -> None:
    threat = ThreatModel.of("Linf", 0.1)
    assert PMA(threat).searches(10) == 2
    assert PMA(threat, restarts=3).searches(10) == 6
