"""Every evasion attack of ART's that can be named, on a tiny model."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from attack_models import (
    TinyCNN,
    digits_data,
    digits_network,
    images,
    predictions,
    run_search,
)
from torch import nn

from robench.attacks.adapters import ARTAttack, art_attacks
from robench.attacks.base import Others
from robench.attacks.hop_skip_jump import HopSkipJump
from robench.errors import AttackError, MissingDependencyError
from robench.evaluation.adjudicate import Adjudicator
from robench.evaluation.batch_attacks import run_batch_attack
from robench.evaluation.samples import Samples
from robench.geometry import norm_of
from robench.threat_models import ThreatModel

# ART warns about its own use of NumPy and PyTorch.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

LINF = ThreatModel.of("Linf", "0.1")
SHORT = {
    "max_iter": 3,
    "nb_steps": 3,
    "n_steps": 3,
    "steps": 3,
    "first_steps": 3,
    "iterations": 2,
} | {
    "max_eval": 30,
    "init_eval": 5,
    "max_trials": 3,
}
"""Parameters that say for how long attacks search"""

RUN_ANYWHERE = {
    "FastGradientMethod",
    "ProjectedGradientDescent",
    "ProjectedGradientDescentNumpy",
    "ProjectedGradientDescentPyTorch",
    "MomentumIterativeMethod",
    "AutoProjectedGradientDescent",
    "AutoConjugateGradient",
    "SquareAttack",
    "CarliniL2Method",
    "CarliniLInfMethod",
    "DeepFool",
    "ElasticNet",
    "BoundaryAttack",
    "SignOPTAttack",
    "ZooAttack",
}
"""Attacks on classifiers, which must end in verdicts under any norm"""


def run(name: str, ball: ThreatModel, model: nn.Module, **params: Any) -> Any:
    """The verdicts on an attack that searches for a moment, and its four samples."""
    inputs = images(4)
    labels = predictions(model, inputs)
    samples = Samples(inputs, labels, model(inputs), torch.arange(4))
    known = inspect.signature(art_attacks()[name]).parameters
    short = {key: value for key, value in SHORT.items() if key in known}
    attack = ARTAttack(ball, foreign_name=name, name="column", **short, **params)
    return run_batch_attack(attack, Adjudicator(model, ball), samples, 0), samples


@pytest.mark.slow
@pytest.mark.parametrize("ball", ["Linf-0.1", "L2-0.5", "L1-2"])
def test_every_attack_runs_with_right_verdicts_or_ends_in_one_clear_error(ball: str) -> None:
    model, threat_model = TinyCNN(), ThreatModel.parse(ball)
    ran, refused = set(), {}
    for name in art_attacks():
        try:
            result, samples = run(name, threat_model, model)
        except (AttackError, MissingDependencyError) as error:
            refused[name] = str(error)
            continue
        ran.add(name)
        assert not result.errors, (name, result.errors)
        shown = result.prediction >= 0
        points = result.adv_inputs[shown]
        sizes = norm_of(points - samples.inputs[shown], threat_model.norm)
        assert bool((sizes <= threat_model.radius * (1 + 1e-5)).all()), name
        assert bool(((points >= 0) & (points <= 1)).all()), name
        now = predictions(model, points)
        assert torch.equal(now, result.prediction[shown]), name
        assert torch.equal(now != samples.labels[shown], result.broken[shown]), name
    assert ran >= RUN_ANYWHERE
    assert [name for name, line in refused.items() if name not in line or "\n" in line] == []


def test_no_attack_keeps_its_own_step_in_a_ball_that_was_filled_in() -> None:
    """ART's default is a step of 0.1, for whatever ε: far outside of a ball of 8/255."""
    ball = ThreatModel.of("Linf", "8/255")
    checked = []
    for name, kind in art_attacks().items():
        defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
        if {"eps", "eps_step"} <= defaults.keys():
            filled = ARTAttack(ball, foreign_name=name).parameters()
            share = defaults["eps_step"] / defaults["eps"]
            assert filled["eps_step"] == pytest.approx(ball.radius * share), name
            checked.append(name)
    assert len(checked) >= 10


@pytest.mark.parametrize("name", ["HopSkipJump", "BoundaryAttack"])
def test_attacks_that_count_in_float64_run(name: str) -> None:
    result, _ = run(name, LINF, TinyCNN(), **({"delta": 0.1} if name == "BoundaryAttack" else {}))
    assert not result.errors


class Counted(nn.Module):
    """Another model, and how often it was asked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.asked += len(inputs)
        logits: torch.Tensor = self.model(inputs)
        return logits


def test_hop_skip_jump_of_our_own_finds_as_many_with_no_more_queries() -> None:
    _, _, inputs, labels = digits_data()
    network = digits_network()
    right = (predictions(network, inputs) == labels).nonzero().squeeze(1)
    known, rows = right[40:200], right[:6]
    inputs, labels, others = inputs[rows], labels[rows], Others(inputs[known], labels[known])
    model = Counted(network)
    theirs = ARTAttack(LINF, foreign_name="HopSkipJump", max_iter=2, max_eval=50, init_eval=20)
    proposed = theirs.propose(model, inputs, labels, seed=0)
    inside = norm_of(proposed - inputs, "Linf") <= LINF.radius
    beaten = (predictions(network, proposed) != labels) & inside
    asked, model.asked = model.asked, 0
    attack = HopSkipJump(LINF, steps=2, draws=20, most_draws=50)
    found = run_search(attack, model, inputs, labels, others=others).found
    assert int(found.forwards.sum()) <= asked
    assert int(found.broken.sum()) >= int(beaten.sum())
    assert bool(found.broken.any())


def test_an_eps_of_another_norm_is_not_filled_in() -> None:
    """BasicIterativeMethod has no norm to choose: its ε of 2 would hold the whole box."""
    with pytest.raises(
        AttackError, match="BasicIterativeMethod searches in the norm inf, not in L1"
    ):
        run("BasicIterativeMethod", ThreatModel.of("L1", 2), TinyCNN())
    result, _ = run("BasicIterativeMethod", ThreatModel.of("L1", 2), TinyCNN(), eps=0.05)
    assert bool((result.prediction >= 0).all())


def test_a_package_that_an_attack_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Any, x: Any, y: Any = None) -> Any:
        import a_package_that_is_not_there  # noqa: F401

    monkeypatch.setattr(art_attacks()["DeepFool"], "generate", generate)
    with pytest.raises(MissingDependencyError, match="DeepFool needs the package 'a_package_th"):
        run("DeepFool", LINF, TinyCNN())


def test_arts_own_failure_is_no_samples_error_and_the_models_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What only ART did wrong says nothing of a sample; a model that fails was attacked."""

    def fails(self: Any, x: Any, y: Any = None) -> Any:
        raise IndexError("list index out of range")

    kind = art_attacks()["DeepFool"]
    with monkeypatch.context() as patch:
        patch.setattr(kind, "generate", fails)
        with pytest.raises(AttackError, match="DeepFool: IndexError: list index out of range"):
            run("DeepFool", LINF, TinyCNN())

    class Fails(TinyCNN):
        """Takes nothing but what it was given first."""

        calls = 0

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 5:
                raise ValueError("not this")
            return super().forward(inputs)

    result, _ = run("ProjectedGradientDescent", LINF, Fails())
    assert result.errors == dict.fromkeys(range(4), "ValueError: not this")


def test_inputs_of_another_shape_are_the_attacks_fault() -> None:
    with pytest.raises(AttackError, match=r"inputs \(3, 6, 6\) instead of \(1, 6, 6\)"):
        run("AdversarialPatchPyTorch", LINF, TinyCNN())
