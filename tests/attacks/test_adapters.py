"""Foreign attacks by name, and the same attacks side by side with ART's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attack_models import (
    TinyCNN,
    digits_data,
    images,
    predictions,
    robust_digits_network,
    run_search,
)
from torch import Tensor, nn

from robench.attacks import ADAPTERS, ATTACKS, build_attack
from robench.attacks.adapters import art_attacks, limit_targets
from robench.attacks.base import BatchAttack
from robench.errors import AttackError, UnknownNameError, UsageError
from robench.evaluation.adjudicate import Adjudicator
from robench.records import AttackSpec
from robench.threat_models import ThreatModel

# ART warns about its own use of NumPy and PyTorch.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LINF = ThreatModel.of("Linf", 0.15)
L2 = ThreatModel.of("L2", 0.8)
CORRUPTED = ThreatModel.corruptions()
N = 300
NETWORKS = ["small", pytest.param("zoo", marks=pytest.mark.slow)]


def _robust_digits(network: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """An adversarially trained network: one trained for seconds, or the zoo's ``pgd-at``."""
    model: nn.Module
    if network == "zoo":
        from robench.models import load_model

        model = load_model("digits/Linf-0.2/pgd-at").requires_grad_(False)
    else:
        model = robust_digits_network()
    _, _, inputs, labels = digits_data()
    right = predictions(model, inputs) == labels
    return model, inputs[right][:n], labels[right][:n]


def _foreign(
    attack: str, params: dict[str, Any], threat_model: ThreatModel, network: str, n: int = N
) -> tuple[Tensor, Tensor]:
    """Broken by our attack, named in a suite's way, and by the foreign one: bool (n,) each."""
    model, inputs, labels = _robust_digits(network, n)
    built = build_attack(AttackSpec(name="a", attack=attack, params=params), threat_model)
    if isinstance(built, BatchAttack):
        proposed = built.propose(model, inputs, labels, 0)
        return Adjudicator(model, threat_model).judge(proposed, inputs, labels).broken, labels
    return run_search(built, model, inputs, labels, batch_size=250).found.broken, labels


def _robust_acc(broken: Tensor) -> float:
    return 100 * float((~broken).double().mean())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("threat_model", [LINF, L2], ids=str)
def test_fgsm_equals_arts(threat_model: ThreatModel, network: str) -> None:
    ours, _ = _foreign(
        "pgd",
        {"steps": 1, "relative_step_size": 1.0, "random_start": False},
        threat_model,
        network,
    )
    theirs, _ = _foreign("art:FastGradientMethod", {"batch_size": 250}, threat_model, network)
    assert 0 < _robust_acc(theirs) < 100
    assert abs(_robust_acc(ours) - _robust_acc(theirs)) <= 1.0


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("threat_model", [LINF, L2], ids=str)
def test_pgd_20_equals_arts(threat_model: ThreatModel, network: str) -> None:
    """From the clean input: between random starts alone one point and more may lie."""
    params = {"steps": 20, "relative_step_size": 0.25, "random_start": False}
    ours, _ = _foreign("pgd", params, threat_model, network)
    theirs, _ = _foreign(
        "art:ProjectedGradientDescent",
        {
            "max_iter": 20,
            "eps_step": threat_model.radius / 4,
            "num_random_init": 0,
            "batch_size": 250,
        },
        threat_model,
        network,
    )
    assert 0 < _robust_acc(theirs) < 100
    assert abs(_robust_acc(ours) - _robust_acc(theirs)) <= 1.0


@pytest.mark.parametrize("network", NETWORKS)
def test_cw_linf_equals_arts_pgd_on_the_margin(network: str) -> None:
    """The field's CW for Linf is PGD on the margin loss. ART's counterpart is its own PGD on a
    classifier with that loss; its CarliniLInfMethod minimises the norm under another budget."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    class Margin(nn.Module):
        def forward(self, logits: Tensor, one_hot: Tensor) -> Tensor:
            own = (logits * one_hot).sum(dim=1)
            return (logits - 1e9 * one_hot).amax(dim=1).sub(own).mean()

    model, inputs, labels = _robust_digits(network, N)
    classifier = PyTorchClassifier(
        model=model,
        loss=Margin(),
        input_shape=(1, 8, 8),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        norm=np.inf,
        eps=LINF.radius,
        eps_step=LINF.radius / 4,
        max_iter=20,
        num_random_init=0,
        batch_size=250,
        verbose=False,
    )
    np.random.seed(0)
    one_hot = nn.functional.one_hot(labels, 10).float().numpy()
    proposed = torch.as_tensor(attack.generate(inputs.numpy(), one_hot))
    theirs = Adjudicator(model, LINF).judge(proposed, inputs, labels).broken
    ours, _ = _foreign(
        "pgd",
        {"steps": 20, "relative_step_size": 0.25, "loss": "margin", "random_start": False},
        LINF,
        network,
    )
    assert 0 < _robust_acc(theirs) < 100
    assert abs(_robust_acc(ours) - _robust_acc(theirs)) <= 1.0


CW_BUDGET = {"initial_const": 0.1, "learning_rate": 0.05}


def _both_cw_l2(
    radius: float, network: str, n: int, rounds: int = 5, steps: int = 40
) -> tuple[float, float]:
    """Robust accuracy under our minimum-norm attack and under ART's, with the same budget."""
    ball = ThreatModel.of("L2", str(radius))
    ours, _ = _foreign("cw-l2", {**CW_BUDGET, "rounds": rounds, "steps": steps}, ball, network, n)
    params = {
        **CW_BUDGET,
        "binary_search_steps": rounds,
        "max_iter": steps,
        "batch_size": 250,
    }
    theirs, _ = _foreign("art:CarliniL2Method", params, ball, network, n)
    return _robust_acc(ours), _robust_acc(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("radius", [0.2, 0.3])
def test_cw_l2_equals_arts(radius: float) -> None:
    """Both minimise the norm, of which robust accuracy at a radius is one value."""
    ours, theirs = _both_cw_l2(radius, "small", N)
    assert 80 < theirs < 95
    assert abs(ours - theirs) <= 1.0


@pytest.mark.parametrize(
    ("network", "n", "rounds", "steps"),
    [
        ("small", 8, 3, 15),
        pytest.param("small", 20, 5, 40, marks=pytest.mark.slow),
        pytest.param("zoo", 100, 5, 40, marks=pytest.mark.slow),
    ],
)
def test_cw_l2_is_no_worse_than_arts(network: str, n: int, rounds: int, steps: int) -> None:
    """At larger radii ART's line search stays behind the paper's Adam, on a linear model too,
    whose optimum ours reaches: there the comparison can only be one-sided."""
    ours, theirs = _both_cw_l2(L2.radius, network, n, rounds, steps)
    assert 0 < theirs < 100
    assert ours <= theirs + (5.0 if n < 100 else 1.0)


def test_foreign_attacks_are_found_by_name() -> None:
    names = art_attacks()
    assert {"FastGradientMethod", "ProjectedGradientDescent", "CarliniL2Method"} <= set(names)
    with pytest.raises(UnknownNameError, match="FastGradientMethod"):
        build_attack(AttackSpec(name="a", attack="art:FastGradientMethd"), LINF)
    with pytest.raises(AttackError, match="standard, plus, rand"):
        build_attack(AttackSpec(name="a", attack="pyautoattack:standart"), LINF)
    with pytest.raises(UnknownNameError, match="Did you mean 'art'"):
        build_attack(AttackSpec(name="a", attack="arr:FastGradientMethod"), LINF)


def test_parameters_that_art_does_not_know_are_an_attack_error() -> None:
    model, inputs, labels = TinyCNN(), images(2), torch.tensor([0, 1])
    spec = AttackSpec(name="a", attack="art:FastGradientMethod", params={"nonsense": 1})
    built = build_attack(spec, LINF)
    assert isinstance(built, BatchAttack)
    with pytest.raises(AttackError, match="nonsense"):
        built.propose(model, inputs, labels, 0)


def test_art_is_reproducible_by_seed() -> None:
    model, inputs = TinyCNN(), images(8)
    labels = predictions(model, inputs)
    spec = AttackSpec(
        name="a",
        attack="art:ProjectedGradientDescent",
        params={"max_iter": 3, "eps_step": 0.05, "num_random_init": 1},
    )
    built = build_attack(spec, LINF)
    assert isinstance(built, BatchAttack)
    one, two, other = (built.propose(model, inputs, labels, seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "attack", ["ProjectedGradientDescent", "BasicIterativeMethod", "MomentumIterativeMethod"]
)
@pytest.mark.parametrize("params", [{}, {"eps": 0.003}])
def test_arts_step_keeps_arts_own_share_of_eps(attack: str, params: dict[str, Any]) -> None:
    """ART's default is a step of 0.1 for an ε of 0.3, whoever says what ε is."""
    from robench.attacks.adapters import ARTAttack

    built = ARTAttack(ThreatModel.of("Linf", 0.015), foreign_name=attack, **params)
    filled = built.parameters()
    assert filled["eps_step"] == pytest.approx(params.get("eps", 0.015) / 3)
    own = ARTAttack(LINF, foreign_name=attack, eps_step=0.02).parameters()
    assert (own["eps"], own["eps_step"]) == (0.15, 0.02)


class _Recording:
    """In place of an attack of ART's: keeps the labels that it is given."""

    seen: np.ndarray[Any, Any]

    def __init__(self, estimator: Any, targeted: bool = True) -> None:
        self.targeted = targeted

    def generate(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
        _Recording.seen = y
        return x


@pytest.mark.parametrize("params, aims_at_rivals", [({}, False), ({"targeted": True}, True)])
def test_arts_targeted_searches_aim_at_the_likeliest_wrong_class(
    params: dict[str, Any], aims_at_rivals: bool
) -> None:
    """Some of ART's attacks are targeted by default: given the true labels they would aim at them."""
    from robench.attacks.adapters import ARTAttack

    model, inputs = TinyCNN(), images(8)
    order = model(inputs).argsort(dim=1, descending=True)
    built = ARTAttack(LINF, foreign_name="BoundaryAttack", **params)
    built.kind = _Recording
    # Of some samples another class than the label is on top.
    labels = torch.where(torch.arange(8) < 4, order[:, 0], order[:, 1])
    rivals = torch.where(torch.arange(8) < 4, order[:, 1], order[:, 0])
    built.propose(model, inputs, labels, 0)
    assert _Recording.seen.tolist() == (rivals if aims_at_rivals else labels).tolist()


def test_arts_attacks_aim_at_the_targets_of_the_threat_model() -> None:
    """An fgsm of ART's that is aimed raises the targets' probability; what has no aim is refused."""
    aimed = LINF.aimed_at("next")
    spec = AttackSpec(name="a", attack="art:FastGradientMethod")
    model, inputs = TinyCNN(), images(8)
    targets = (predictions(model, inputs) + 1) % 6
    built = build_attack(spec, aimed)
    assert isinstance(built, BatchAttack)
    proposed = built.propose(model, inputs, targets, 0)
    before, after = (
        model(points).log_softmax(dim=1).gather(1, targets[:, None])
        for points in (inputs, proposed)
    )
    assert bool((after > before).all())
    for attack, params, why in (
        ("art:DeepFool", {}, "no parameter targeted"),
        ("art:FastGradientMethod", {"targeted": False}, "targeted is false"),
    ):
        with pytest.raises(AttackError, match=f"a: ART's .* cannot be aimed at targets.*{why}"):
            build_attack(AttackSpec(name="a", attack=attack, params=params), aimed)


def test_the_references_autoattack_runs_by_name() -> None:
    """On a model so weak that its first attack breaks everything; proposals hold up in fp32."""
    model, inputs = TinyCNN(seed=2), images(12, seed=8)
    labels = predictions(model, inputs)
    threat_model = ThreatModel.of("Linf", 0.5)
    built = build_attack(AttackSpec(name="a", attack="pyautoattack:standard"), threat_model)
    assert isinstance(built, BatchAttack)
    proposed = built.propose(model, inputs, labels, 0)
    verdicts = Adjudicator(model, threat_model).judge(proposed, inputs, labels)
    assert bool(verdicts.broken.all())


@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (5, 4), (10, 9), (100, 9)])
def test_the_reference_aims_at_wrong_classes_only(classes: int, targets: int) -> None:
    from pyautoattack import AutoAttack

    reference = AutoAttack(TinyCNN(), norm="Linf", eps=0.1, device="cpu")
    limit_targets(reference, classes)
    assert reference.apgd_targeted.n_target_classes == targets
    assert reference.fab.n_target_classes == targets


@pytest.mark.slow
@pytest.mark.parametrize("classes", [4, 5])
def test_the_reference_runs_on_few_classes(classes: int) -> None:
    """On a model that its first attack cannot break, so that all targets have their turn."""
    model, inputs = TinyCNN(classes=classes, seed=2), images(3, seed=8)
    labels = predictions(model, inputs)
    built = build_attack(
        AttackSpec(name="a", attack="pyautoattack:standard"), ThreatModel.of("Linf", "0.000001")
    )
    assert isinstance(built, BatchAttack)
    proposed = built.propose(model, inputs, labels, 0)
    assert (proposed - inputs).abs().max() <= 1.1e-6


def test_the_reference_is_not_defined_for_three_classes() -> None:
    model, inputs = TinyCNN(classes=3), images(2)
    built = build_attack(AttackSpec(name="a", attack="pyautoattack:standard"), LINF)
    assert isinstance(built, BatchAttack)
    with pytest.raises(AttackError, match="four classes"):
        built.propose(model, inputs, torch.tensor([0, 1]), 0)


def test_entries_of_a_suite_become_attacks() -> None:
    for name in ATTACKS:
        threat_model = {"cw-l2": L2, "ddn": L2, "corruptions": CORRUPTED}.get(name, LINF)
        built = build_attack(AttackSpec(name="column", attack=name), threat_model)
        assert built.name == "column"
        assert built.threat_model == threat_model
        assert ATTACKS.summary(name)
    assert sorted(ADAPTERS) == ["art", "pyautoattack"]


@pytest.mark.parametrize(
    ("attack", "params", "error", "says"),
    [
        ("pgdd", {}, UnknownNameError, "Did you mean 'pgd'"),
        ("pgd", {"step": 3}, UsageError, "Did you mean 'steps'"),
        ("pgd", {"qqqqqq": 3}, UsageError, "It has: steps"),
        ("pgd", {"steps": 0}, AttackError, "at least 1"),
        ("cw-l2", {}, AttackError, "says nothing about Linf"),
        ("pgd", {"threat_model": 3}, UsageError, "no parameter 'threat_model'"),
        ("pgd", {"name": "x"}, UsageError, "no parameter 'name'"),
        ("art:FastGradientMethod", {"foreign_name": "x"}, UsageError, "foreign_name"),
        ("pgd", {"steps": "many"}, AttackError, "must be a whole number"),
        ("pgd", {"loss": "cross"}, UnknownNameError, "unknown loss 'cross'"),
        ("pgd", {"loss": "logit-difference"}, UnknownNameError, "Known: ce, dlr, margin"),
        ("apgd", {"loss": "dlr-target"}, UnknownNameError, "Did you mean 'dlr-targeted'"),
    ],
)
def test_wrong_entries_say_what_is_wrong(
    attack: str, params: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        build_attack(AttackSpec(name="a", attack=attack, params=params), LINF)
