"""From the same start, iterates equal the reference's (pyautoattack), step by step.

Models compute in float64 between float32 borders, so that the two programs see the same logits;
what remains are last bits of float32 in the loss's slope and in the points.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from attack_models import (
    DoubleInside,
    PlainQuery,
    Recorder,
    TinyCNN,
    digits_data,
    digits_network,
    images,
    predictions,
    robust_digits_network,
    run_search,
    slots_for,
)
from pyautoattack import autopgd_base
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from robench.attacks import apgd
from robench.attacks.apgd import APGD
from robench.attacks.fab import FAB
from robench.threat_models import Norm, ThreatModel

TOLERANCE: dict[Norm, float] = {
    "Linf": 2e-6,
    # Near convergence two losses agree to the last digit, and which of two neighbours is taken
    # for the best point is rounding's choice.
    "L2": 1e-4,
    "L1": 2e-6,
}
STEPS = 22  # passes several checkpoints of every schedule
FAB_STEPS = 10


def _random_network() -> tuple[nn.Module, Tensor, Tensor]:
    model = DoubleInside(TinyCNN(classes=6, channels=2, seed=3))
    inputs = images(10, (2, 6, 6), seed=5)
    return model, inputs, predictions(model, inputs)


def _digits() -> tuple[nn.Module, Tensor, Tensor]:
    from robench.models.architectures.resnet import DigitsResNet

    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = DigitsResNet(width=8)
        # Untouched biases of zero would put whole dark regions exactly on the kink of ReLU.
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.bias, std=0.3)
    model = DoubleInside(network.requires_grad_(False))
    _, _, inputs, _ = digits_data()
    return model, inputs[:8], predictions(model, inputs[:8])


def _trained() -> tuple[nn.Module, Tensor, Tensor]:
    import copy

    model = DoubleInside(copy.deepcopy(digits_network()))
    _, _, inputs, labels = digits_data()
    right = predictions(model, inputs) == labels
    return model, inputs[right][:8], labels[right][:8]


PROBLEMS = {"random": _random_network, "digits": _digits, "trained": _trained}
EPS: dict[str, dict[Norm, float]] = {
    "random": {"Linf": 0.02, "L2": 0.12, "L1": 0.6},
    "digits": {"Linf": 0.07, "L2": 0.4, "L1": 1.5},
    "trained": {"Linf": 0.1, "L2": 0.5, "L1": 1.5},
}


def paths(variants: Iterable[Any]) -> list[Any]:
    """Triples of problem, norm and variant; quick are the few that bring together every two."""
    every = itertools.product(enumerate(PROBLEMS), enumerate(EPS["random"]), enumerate(variants))
    return [
        pytest.param(problem, norm, variant, marks=() if (i + j - k) % 3 == 0 else pytest.mark.slow)
        for (i, problem), (j, norm), (k, variant) in every
    ]


@pytest.fixture(autouse=True)
def _exact_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """L1 projections end in exact ties, where rounding leaves residues of 1e-8.

    Both programs count changed pixels, and would count residues as changed at random.
    """

    def count(delta: Tensor) -> Tensor:
        return (delta.abs() > 1e-6).flatten(1).sum(dim=1).float()

    monkeypatch.setattr(autopgd_base, "L0_norm", count)
    monkeypatch.setattr(apgd, "_count_changed", lambda points, inputs: count(points - inputs))


def _reference_apgd(
    loss: str,
    threat_model: ThreatModel,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    target_class: int,
    larger_eps: bool = False,
) -> list[Tensor]:
    recorder = Recorder(model)
    eps = threat_model.radius
    kwargs: dict[str, Any] = {
        "n_iter": STEPS,
        "norm": threat_model.norm,
        "eps": eps,
        "device": "cpu",
        "use_largereps": larger_eps,
    }
    if loss == "dlr-targeted":
        attack = APGDAttack_targeted(recorder, **kwargs)
        attack.y_target = model(inputs).sort(dim=1)[1][:, -target_class]
    else:
        attack = APGDAttack(recorder, loss=loss, **kwargs)
    attack.init_hyperparam(inputs)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        if larger_eps:
            early = math.ceil(0.3 * STEPS)
            counts = [early, early, STEPS - 2 * early]
            attack.decr_eps_pgd(inputs, labels, [f * eps for f in (3, 2, 1)], counts)
        else:
            attack.attack_single_run(inputs, labels)
    return recorder.seen


def _our_apgd(
    attack: APGD, model: nn.Module, inputs: Tensor, labels: Tensor, search: int, start: Tensor
) -> list[Tensor]:
    query = PlainQuery(model)
    with patch.object(attack, "_random_start", return_value=start):
        state = attack.start(query, slots_for(model, inputs, labels, search))
    while not bool(attack.finished(state).all()):
        state = attack.step(query, state)
    return query.seen


def _assert_same_path(
    ours: list[Tensor], reference: list[Tensor], model: nn.Module, labels: Tensor, tolerance: float
) -> None:
    """Equal up to each sample's first misclassified point, where a search ends.

    Beyond it DLR can be constant, and its gradient nothing but rounding.
    """
    assert len(ours) == len(reference)
    searching = torch.ones_like(labels, dtype=torch.bool)
    compared = 0
    for step, (mine, theirs) in enumerate(zip(ours, reference, strict=True)):
        difference = (mine - theirs).flatten(1).abs().amax(dim=1)[searching]
        assert difference.max() <= tolerance, f"step {step}: {difference}"
        compared += int(searching.sum())
        searching &= predictions(model, theirs) == labels
        if not bool(searching.any()):
            break
    assert compared > 2 * len(labels)  # the paths did not end where they began


@pytest.mark.parametrize(("problem", "norm", "search"), paths(range(4)))
def test_apgd_walks_the_reference_path(problem: str, norm: Norm, search: int) -> None:
    loss: Any
    loss, search = [("ce", 0), ("dlr", 0), ("dlr-targeted", 0), ("dlr-targeted", 3)][search]
    model, inputs, labels = PROBLEMS[problem]()
    threat_model = ThreatModel.of(norm, EPS[problem][norm])
    reference = _reference_apgd(loss, threat_model, model, inputs, labels, search + 2)
    attack = APGD(threat_model, steps=STEPS, loss=loss)
    ours = _our_apgd(attack, model, inputs, labels, search, reference[0])
    _assert_same_path(ours, reference, model, labels, TOLERANCE[threat_model.norm])


@pytest.mark.parametrize("loss", ["ce", "dlr-targeted"])
def test_apgd_shrinks_the_l1_ball_as_the_reference_does(loss: Any) -> None:
    model, inputs, labels = _random_network()
    threat_model = ThreatModel.of("L1", 0.1)
    reference = _reference_apgd(loss, threat_model, model, inputs, labels, 2, larger_eps=True)
    attack = APGD(threat_model, steps=STEPS, loss=loss, shrinking_eps=True)
    ours = _our_apgd(attack, model, inputs, labels, 0, reference[0])
    _assert_same_path(ours, reference, model, labels, TOLERANCE[threat_model.norm])


def test_apgd_starts_on_the_balls_surface_as_the_reference_does() -> None:
    model, inputs, labels = _random_network()
    inputs = 0.5 + 0.01 * inputs  # the box cuts nothing off
    for norm in ("Linf", "L2"):
        attack = APGD(ThreatModel.of(norm, 0.3), steps=5)
        state = attack.start(PlainQuery(model), slots_for(model, inputs, labels))
        delta = (state.point - inputs).flatten(1)
        size = torch.linalg.vector_norm(delta, ord=torch.inf if norm == "Linf" else 2, dim=1)
        torch.testing.assert_close(size, torch.full_like(size, 0.3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("problem", "norm", "target_class"), paths([None, 2, 4]))
def test_fab_walks_the_reference_path(problem: str, norm: Norm, target_class: int | None) -> None:
    model, inputs, labels = PROBLEMS[problem]()
    recorder = Recorder(model)
    reference = FABAttack_PT(
        recorder, norm=norm, n_iter=FAB_STEPS, eps=EPS[problem][norm], device="cpu"
    )
    reference.target_class = target_class
    reference.attack_single_run(inputs, labels, is_targeted=target_class is not None)
    theirs = recorder.seen[1 if target_class is None else 2 :]  # its looks at the clean inputs

    threat_model = ThreatModel.of(norm, EPS[problem][norm])
    attack = FAB(threat_model, steps=FAB_STEPS, targets=0 if target_class is None else 5)
    query = PlainQuery(model)
    search = 0 if target_class is None else target_class - 2
    state = attack.start(query, slots_for(model, inputs, labels, search))
    while not bool(attack.finished(state).all()):
        state = attack.step(query, state)
    assert len(query.seen) == len(theirs)
    for step, (mine, other) in enumerate(zip(query.seen, theirs, strict=True)):
        difference = float((mine - other).abs().max())
        # Errors grow along a path that keeps bouncing off a curved boundary.
        assert difference <= 1e-5 * (1 + step), f"pass {step}: {difference}"


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_fab_finds_what_the_reference_finds(norm: Norm) -> None:
    """The reference keeps its smallest find and checks it at the end; ours stops inside."""
    model, inputs, labels = _trained()
    eps = {"Linf": 0.1, "L2": 0.6, "L1": 2.5}[norm]
    reference = FABAttack_PT(model, norm=norm, n_iter=30, eps=eps, device="cpu")
    reference.target_class = 2
    adv_inputs = reference.attack_single_run(inputs, labels, is_targeted=True)
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    size = torch.linalg.vector_norm((adv_inputs - inputs).flatten(1), ord=order, dim=1)
    broken = (predictions(model, adv_inputs) != labels) & (size <= eps)
    clear = (size / eps - 1).abs() > 1e-3

    attack = FAB(ThreatModel.of(norm, eps), steps=30)
    query = PlainQuery(model)
    state = attack.start(query, slots_for(model, inputs, labels))
    found = torch.zeros_like(broken)
    while not bool(attack.finished(state).all()):
        state = attack.step(query, state)
        found |= state.margin < 0
    assert torch.equal(found[clear], broken[clear])
    assert bool(found.any())


@pytest.mark.parametrize("norm", ["Linf", "L1", pytest.param("L2", marks=pytest.mark.slow)])
def test_apgd_breaks_as_many_as_the_reference(norm: Norm) -> None:
    """From random starts of their own; for L1 with the ball that shrinks, as AutoAttack has it."""
    model = robust_digits_network()
    _, _, inputs, labels = digits_data()
    right = predictions(model, inputs) == labels
    inputs, labels = inputs[right][:300], labels[right][:300]
    threat_model = ThreatModel.of(norm, {"Linf": 0.15, "L2": 0.9, "L1": 1.8}[norm])
    reference = APGDAttack(
        model,
        n_iter=30,
        norm=norm,
        eps=threat_model.radius,
        device="cpu",
        use_largereps=norm == "L1",
        seed=3,
    )
    with torch.random.fork_rng():
        theirs = predictions(model, reference.perturb(inputs, labels)) != labels
    attack = APGD(threat_model, steps=30, shrinking_eps=norm == "L1")
    ours = run_search(attack, model, inputs, labels, batch_size=300).found.broken
    assert 0.1 < float(theirs.float().mean()) < 0.9
    assert abs(int(ours.sum()) - int(theirs.sum())) <= 3  # one point of robust accuracy
