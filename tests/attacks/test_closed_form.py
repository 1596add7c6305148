"""Linear classifiers, whose distance to the boundary is known: ‖·‖-distance = lead / dual norm.

The inputs lie far from the box's borders, so only the ball constrains. Half of the samples are
nearer to the boundary than ε, and no distance lies within 2 % of it: an attack that reaches the
optimum breaks exactly those.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attack_models import LinearModel, linear_problem, run_search

from robench.attacks.apgd import APGD
from robench.attacks.carlini_wagner import CarliniWagnerL2
from robench.attacks.ddn import DDN
from robench.attacks.fab import FAB
from robench.attacks.fmn import FMN
from robench.attacks.pgd import PGD
from robench.attacks.probability_margin import PMA
from robench.attacks.square import Square
from robench.errors import AttackError
from robench.geometry import norm_of
from robench.threat_models import Norm, ThreatModel

FGSM = {"steps": 1, "relative_step_size": 1.0, "random_start": False}
EXACT: list[tuple[str, type[Any], dict[str, Any], tuple[Norm, ...], tuple[int, ...]]] = [
    # For two classes, FGSM's one step goes straight to the best point of the ball, in any norm
    # in which the steepest direction of length ε is that point.
    ("fgsm", PGD, FGSM, ("Linf", "L2", "L1"), (2,)),
    ("pgd-ce", PGD, {"steps": 40}, ("Linf", "L2"), (2,)),
    ("pgd-margin", PGD, {"steps": 40, "loss": "margin"}, ("Linf", "L2"), (2, 3)),
    ("pma", PMA, {"steps": 60}, ("Linf", "L2"), (2,)),
    ("apgd-ce", APGD, {"steps": 50}, ("Linf", "L2"), (2,)),
    ("apgd-dlr", APGD, {"steps": 50, "loss": "dlr"}, ("Linf", "L2"), (3,)),
    (
        "apgd-t",
        APGD,
        {"steps": 50, "loss": "dlr-targeted", "targets": 4},
        ("Linf", "L2"),
        (4, 5),
    ),
    ("fab-t", FAB, {"steps": 20, "targets": 4}, ("Linf", "L2", "L1"), (2, 3, 5)),
    ("fab", FAB, {"steps": 20, "targets": 0}, ("Linf", "L2", "L1"), (2, 5)),
]
CASES = [
    pytest.param(kind, arguments, norm, classes, id=f"{name}-{norm}-{classes}")
    for name, kind, arguments, norms, class_counts in EXACT
    for norm in norms
    for classes in class_counts
]


@pytest.mark.parametrize(("kind", "arguments", "norm", "classes"), CASES)
def test_attacks_break_exactly_what_can_be_broken(
    kind: type[Any], arguments: dict[str, Any], norm: Norm, classes: int
) -> None:
    model, inputs, labels, distance, threat_model = linear_problem(norm, classes, count=16)
    attack = kind(threat_model, **arguments)
    found = run_search(attack, model, inputs, labels).found
    breakable = distance < threat_model.radius
    assert 0.2 < float(breakable.float().mean()) < 0.8
    assert torch.equal(found.broken, breakable)
    size = norm_of((found.adv_inputs - inputs).double(), norm)
    assert bool((size <= threat_model.radius + 1e-6).all())
    assert bool((size[breakable] >= distance[breakable] - 1e-6).all())


@pytest.mark.parametrize(("loss", "classes"), [("ce", 2), ("dlr-targeted", 4)])
def test_apgd_for_l1_breaks_nearly_all(loss: Any, classes: int) -> None:
    """Its sparse steps have a least length, so that it stops a little short of the corner."""
    model, inputs, labels, distance, threat_model = linear_problem("L1", classes, count=21)
    attack = APGD(threat_model, steps=100, loss=loss, shrinking_eps=True)
    found = run_search(attack, model, inputs, labels).found
    breakable = distance < threat_model.radius
    assert not bool((found.broken & ~breakable).any())
    assert float(found.broken.sum() / breakable.sum()) >= 0.9


@pytest.mark.parametrize("steps", range(1, 8))
def test_apgd_shrinks_its_radius_in_any_number_of_steps(steps: int) -> None:
    """For two classes the margin is linear: nothing beyond the optimum, and all end in the ball."""
    model, inputs, labels, distance, threat_model = linear_problem("L1", 2)
    attack = APGD(threat_model, steps=steps, shrinking_eps=True)
    found = run_search(attack, model, inputs, labels).found
    breakable = distance < threat_model.radius
    assert not bool((found.broken & ~breakable).any())
    size = norm_of((found.adv_inputs - inputs).double(), "L1")
    assert bool((size <= threat_model.radius + 1e-6).all())
    assert bool((size > 0.5 * threat_model.radius).any())
    assert bool(found.closest_margin[~found.broken].isfinite().all())


@pytest.mark.parametrize(("norm", "share"), [("Linf", 1.0), ("L2", 0.5), ("L1", 0.3)])
def test_square_breaks_what_its_windows_can_express(norm: Norm, share: float) -> None:
    """For Linf the optimum is made of windows; for L2 and L1 it is not, and is never passed."""
    blocks = torch.tensor([[1.0, -2.0], [-1.5, 0.5]])
    weight = torch.zeros(2, 5, 5)
    weight[1, :4, :4] = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
    model, inputs, labels, distance, threat_model = linear_problem(
        norm, 2, count=24, side=5, weight=weight.flatten(1)
    )
    found = run_search(Square(threat_model, queries=300), model, inputs, labels).found
    breakable = distance < threat_model.radius
    assert not bool((found.broken & ~breakable).any())
    assert float(found.broken.sum() / breakable.sum()) >= share


@pytest.mark.parametrize(
    ("kind", "norm", "classes", "share"),
    [
        (FMN, "Linf", 2, 1.0),
        (FMN, "L2", 2, 1.0),
        (FMN, "L1", 2, 1.0),
        (DDN, "L2", 2, 1.0),
        # With more classes some searches come down at a boundary that is not the nearest.
        (FMN, "Linf", 5, 0.8),
        (FMN, "L2", 5, 0.8),
        (FMN, "L1", 5, 0.8),
    ],
)
def test_minimum_norm_attacks_reach_the_least_perturbation(
    kind: type[Any], norm: Norm, classes: int, share: float
) -> None:
    """Within 5 % of the closed form in 100 passes, and never nearer."""
    model, inputs, labels, distance, threat_model = linear_problem(norm, classes)
    found = run_search(kind(threat_model), model, inputs, labels).found
    size = found.found_size.double()
    assert bool((size >= distance * (1 - 1e-4) - 1e-6).all())
    assert float((size < 1.05 * distance).float().mean()) >= share
    assert torch.equal(found.broken, size <= threat_model.radius)
    assert float(found.forwards.max()) <= 101


def test_carlini_wagner_reaches_the_least_perturbation() -> None:
    model, inputs, labels, distance, threat_model = linear_problem("L2", 2, count=24)
    attack = CarliniWagnerL2(threat_model, rounds=8, steps=80, learning_rate=0.006)
    found = run_search(attack, model, inputs, labels).found
    size = found.found_size.double()
    assert bool((size >= distance - 1e-6).all())
    torch.testing.assert_close(size, distance, rtol=0.02, atol=0.03 * threat_model.radius)
    clear = (distance / threat_model.radius - 1).abs() > 0.06
    assert torch.equal(found.broken[clear], (distance < threat_model.radius)[clear])


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_survivors_come_with_their_closest_point(norm: Norm) -> None:
    """For two classes the least margin in the ball is lead − ε·‖w‖*."""
    model, inputs, labels, distance, threat_model = linear_problem(norm, 2)
    attack = PGD(threat_model, steps=1, relative_step_size=1.0, random_start=False)
    found = run_search(attack, model, inputs, labels).found
    survived = ~found.broken
    logits = model(inputs)
    lead = logits.amax(dim=1) - logits.amin(dim=1)
    least = lead * (1 - threat_model.radius / distance)
    torch.testing.assert_close(
        found.closest_margin[survived].double(), least[survived].double(), rtol=1e-4, atol=1e-5
    )


def test_the_box_is_the_other_constraint() -> None:
    """A pixel at 0 cannot go below: what the ball allows, the box may not."""
    model = LinearModel(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0.05, 0.0]))
    inputs = torch.tensor([[0.0, 0.5], [0.2, 0.5]]).view(2, 1, 1, 2)
    labels = torch.tensor([0, 0])
    for attack in (
        PGD(ThreatModel.of("Linf", 0.5), steps=5),
        APGD(ThreatModel.of("Linf", 0.5), steps=10),
        FAB(ThreatModel.of("L2", 0.5), steps=10),
        APGD(ThreatModel.of("L1", 0.5), steps=10),
    ):
        found = run_search(attack, model, inputs, labels).found
        assert found.broken.tolist() == [False, False]  # the margin is never below 0.05
        torch.testing.assert_close(
            found.closest_margin.min(), torch.tensor(0.05), atol=0.02, rtol=0
        )


@pytest.mark.parametrize(
    ("attack", "classes"),
    [
        (APGD(ThreatModel.of("Linf", 0.1), loss="dlr"), 2),
        (APGD(ThreatModel.of("Linf", 0.1), loss="dlr-targeted"), 3),
        (PGD(ThreatModel.of("Linf", 0.1), loss="dlr"), 2),
    ],
)
def test_losses_that_need_more_classes_are_refused(attack: Any, classes: int) -> None:
    model, inputs, labels, _, _ = linear_problem("Linf", classes)
    with pytest.raises(AttackError, match=f"the model has {classes}"):
        run_search(attack, model, inputs, labels)


def test_fewer_classes_mean_fewer_targets() -> None:
    threat_model = ThreatModel.of("Linf", 0.1)
    assert FAB(threat_model, targets=9).searches(2) == 1
    assert FAB(threat_model, targets=9).searches(10) == 9
    assert FAB(threat_model, targets=0, restarts=3).searches(10) == 3
    assert APGD(threat_model, loss="dlr-targeted", targets=9).searches(5) == 4
    assert APGD(threat_model, loss="dlr-targeted", targets=9, restarts=2).searches(100) == 18


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (PGD, {"steps": 0}),
        (PGD, {"restarts": 0}),
        (PGD, {"step_size": 0.0}),
        (APGD, {"steps": 0}),
        (APGD, {"eot": 0}),
        (APGD, {"shrinking_eps": True}),
        (FAB, {"steps": 0}),
        (FAB, {"targets": -1}),
        (CarliniWagnerL2, {}),
    ],
)
def test_senseless_parameters_are_refused(kind: type[Any], bad: dict[str, Any]) -> None:
    with pytest.raises(AttackError):
        kind(ThreatModel.of("Linf", 0.1), **bad)


def test_carlini_wagner_wants_positive_parameters() -> None:
    for name, value, wanted in (
        ("rounds", 0, "at least 1"),
        ("learning_rate", 0.0, "above 0"),
        ("confidence", -1.0, "at least 0"),
    ):
        with pytest.raises(AttackError, match=f"{name} must be {wanted}, got {value}"):
            CarliniWagnerL2(ThreatModel.of("L2", 0.1), **{name: value})  # type: ignore[arg-type]
