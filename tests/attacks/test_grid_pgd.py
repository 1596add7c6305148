"""Every point of the search lies on its input's grey levels and in the ball; the optimum is found."""

from __future__ import annotations

import pytest
import torch
from attack_models import LinearModel, PlainQuery, run_search, slots_for
from torch import Tensor, nn

from robench.attacks.grid_pgd import GridPGD, grid_steps
from robench.errors import AttackError
from robench.threat_models import ThreatModel

SIXTEENTHS = torch.randint(0, 17, (24, 1, 4, 4), generator=torch.Generator().manual_seed(0)) / 16


def linear() -> LinearModel:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 16, generator=generator)
    return LinearModel(weight, -weight.sum(dim=1) / 2)


class OnGrid(nn.Module):
    """Between sixteenths the label is what it was; on them a linear model answers."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        self.model, self.labels = linear(), labels

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = inputs * 16
        off = (scaled - scaled.round()).flatten(1).abs().amax(dim=1) > 1e-3
        kept = 100 * nn.functional.one_hot(self.labels, 3).float()
        return torch.where(off[:, None], kept[: len(inputs)], self.model(inputs))


@pytest.mark.parametrize("steps", [1, 3, 16, 255])
def test_the_levels_are_read_from_each_input(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    inputs = torch.randint(0, steps + 1, (3, 1, 6, 6), generator=generator) / steps
    assert grid_steps(inputs).flatten().tolist() == [steps] * 3
    mixed = torch.cat((inputs, torch.rand(1, 1, 6, 6, generator=generator)))
    assert grid_steps(mixed).flatten().tolist() == [steps] * 3 + [255]


@pytest.mark.parametrize("eps", ["0.2", "1/16", "0.01"])
def test_points_lie_on_the_grid_and_in_the_ball(eps: str) -> None:
    threat_model = ThreatModel.of("Linf", eps)
    attack = GridPGD(threat_model, steps=6, relative_step_size=0.1)
    model = linear()
    query = PlainQuery(model)
    state = attack.start(query, slots_for(model, SIXTEENTHS, model(SIXTEENTHS).argmax(dim=1)))
    for _ in range(6):
        state = attack.step(query, state)
    for points in query.seen:
        assert torch.equal(points * 16, (points * 16).round())
        assert (points - SIXTEENTHS).abs().max() <= threat_model.radius + 1e-6
        assert 0 <= points.min() <= points.max() <= 1
    moved = (query.seen[-1] != SIXTEENTHS).any()
    assert bool(moved) == (threat_model.radius >= 1 / 16)


def test_it_finds_the_optimum_that_a_detector_of_other_levels_hides() -> None:
    """Of a linear model, one level each way under ε = 0.1."""
    model = linear()
    with torch.no_grad():
        logits = model(SIXTEENTHS)
    labels = logits.argmax(dim=1)
    flat, weight = SIXTEENTHS.flatten(1), model.weight.float()
    slope = weight[labels][:, None] - weight[None]
    room = torch.where(slope > 0, flat[:, None], 1 - flat[:, None]).clamp(max=1 / 16)
    falls = (slope.abs() * room).sum(dim=2)
    lead = logits.gather(1, labels[:, None]) - logits
    hidden = (lead < falls - 1e-4).any(dim=1)
    attack = GridPGD(ThreatModel.of("Linf", "0.1"), steps=20, restarts=3)
    gated = OnGrid(labels)
    # Each sample alone: the gate knows one label at a time.
    broken = []
    for row in range(len(labels) // 2):
        gated.labels = labels[row : row + 1].expand(64)
        own = SIXTEENTHS[row : row + 1]
        broken.append(bool(run_search(attack, gated, own, labels[row : row + 1]).found.broken[0]))
    assert broken == hidden[: len(broken)].tolist()
    assert 0 < sum(broken) < len(broken)


def test_other_norms_are_refused() -> None:
    with pytest.raises(AttackError, match="defined under Linf"):
        GridPGD(ThreatModel.of("L2", "0.5"))
