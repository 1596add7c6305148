"""HopSkipJump: labels alone, from other samples, down to the closed form and no further."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attack_models import (
    ExactNetwork,
    PlainQuery,
    images,
    linear_problem,
    predictions,
    run_search,
    slots_for,
)
from torch import Tensor, nn

from robench.attacks.base import Others
from robench.attacks.hop_skip_jump import HopSkipJump
from robench.errors import AttackError
from robench.geometry import norm_of
from robench.threat_models import Norm, ThreatModel


class Labels(nn.Module):
    """Another model's labels, one-hot, and how often it was asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.asked += len(inputs)
        logits: Tensor = self.model(inputs)
        return nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).float()


@pytest.mark.parametrize(
    ("norm", "classes"),
    [
        ("Linf", 4),
        ("L2", 2),
        pytest.param("Linf", 2, marks=pytest.mark.slow),
        pytest.param("L2", 4, marks=pytest.mark.slow),
    ],
)
def test_it_breaks_nearly_all_that_can_be_broken_and_nothing_else(norm: Norm, classes: int) -> None:
    model, inputs, labels, distance, threat = linear_problem(norm, classes, count=20)
    attack = HopSkipJump(threat, steps=12, draws=40)
    found = run_search(attack, Labels(model), inputs, labels).found
    breakable = distance < threat.radius
    assert not bool((found.broken & ~breakable).any())
    assert float(found.broken.sum() / breakable.sum()) >= 0.9
    size = norm_of((found.adv_inputs - inputs).double(), norm)
    assert bool((size <= threat.radius + 1e-6).all())


def test_logits_say_no_more_than_labels() -> None:
    model, inputs, labels, _, threat = linear_problem("Linf", 4, count=16)
    attack = HopSkipJump(threat, steps=5, draws=20)
    told, known = (run_search(attack, m, inputs, labels).found for m in (Labels(model), model))
    assert torch.equal(told.broken, known.broken)
    assert torch.equal(told.adv_inputs[told.broken], known.adv_inputs[told.broken])
    assert torch.equal(told.forwards, known.forwards)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_searches_begin_at_the_nearest_samples_of_another_class(norm: Norm) -> None:
    model = ExactNetwork()
    inputs, known = images(6, seed=1), images(40, seed=2)
    labels, classes = predictions(model, inputs), predictions(model, known)
    away = torch.stack([norm_of(known - one, norm) for one in inputs])
    away[labels[:, None] == classes] = torch.inf
    attack = HopSkipJump(ThreatModel.of(norm, "0.001"), restarts=3)
    for search in range(3):
        slots = replace(slots_for(model, inputs, labels, search), others=Others(known, classes))
        query = PlainQuery(model)
        far, there = attack._nearest_other(slots)
        assert bool(there.all())
        assert torch.equal(far, known[away.argsort(dim=1)[:, search]])
        start = attack.start(query, slots)
        assert bool((predictions(model, start.far) != labels).all())
        assert bool((start.distance <= away.sort(dim=1).values[:, search] + 1e-6).all())


def test_where_no_sample_is_known_it_begins_at_noise_or_not_at_all() -> None:
    model, inputs, labels, _, threat = linear_problem("Linf", 2, count=8)
    own = Others(inputs, torch.zeros_like(labels))
    attack = HopSkipJump(threat, steps=3, draws=10)
    slots = replace(slots_for(model, inputs, torch.zeros_like(labels)), others=own)
    started = attack.start(PlainQuery(model), slots)
    assert bool((started.distance.isfinite() == (started.step == 0)).all())
    assert bool((predictions(model, started.far[started.step == 0]) == 1).all())

    class Always(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return torch.tensor([1.0, 0.0]).expand(len(points), 2)

    found = run_search(attack, Always(), inputs, torch.zeros_like(labels)).found
    assert not bool(found.broken.any())
    assert set(found.forwards.tolist()) == {16}


def test_a_target_is_reached_and_its_samples_are_where_it_begins() -> None:
    model, inputs, labels, _, _ = linear_problem("Linf", 4, count=24)
    targets = (labels + 1) % 4
    others = Others(inputs, labels)
    attack = HopSkipJump(ThreatModel.of("Linf", "0.4").aimed_at("next"), steps=6, draws=30)
    slots = replace(slots_for(model, inputs, targets), others=others)
    far, there = attack._nearest_other(slots)
    assert bool(there.all())
    assert torch.equal(predictions(model, far), targets)
    found = run_search(attack, model, inputs, targets, others=others).found
    assert bool(found.broken.any())
    assert torch.equal(found.prediction[found.broken], targets[found.broken])


def test_starts_at_others_do_not_depend_on_batch_or_order() -> None:
    model = ExactNetwork()
    inputs, known = images(12, seed=1), images(30, seed=2)
    labels, others = predictions(model, inputs), Others(known, predictions(model, known))
    attack = HopSkipJump(ThreatModel.of("Linf", "0.03"), steps=3, draws=8, restarts=2)

    def run(**how: Any) -> Any:
        return run_search(attack, model, inputs, labels, others=others, **how).found

    whole, order = run(batch_size=100), torch.arange(11, -1, -1)
    assert 0 < int(whole.broken.sum()) < 12
    for found, rows in ((run(batch_size=1), slice(None)), (run(batch_size=5, order=order), order)):
        assert torch.equal(whole.broken[rows], found.broken)
        assert torch.equal(whole.adv_inputs[rows], found.adv_inputs)


def test_l1_is_refused() -> None:
    with pytest.raises(AttackError, match="under Linf and L2, not under L1"):
        HopSkipJump(ThreatModel.of("L1", "1"))
