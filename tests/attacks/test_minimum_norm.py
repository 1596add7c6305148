"""Minimum-norm attacks beside Foolbox's, with each other, and what their parameters may be."""

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from attack_models import (
    LinearModel,
    digits_data,
    linear_problem,
    predictions,
    robust_digits_network,
    run_search,
)
from torch import Tensor

from robench.acceleration.search_models import SearchModel
from robench.attacks.carlini_wagner import CarliniWagnerL2
from robench.attacks.ddn import DDN
from robench.attacks.fmn import FMN
from robench.errors import AttackError
from robench.evaluation.samples import SearchResult
from robench.geometry import norm_of
from robench.threat_models import Norm, ThreatModel

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports from where SciPy moved things away
    foolbox = pytest.importorskip("foolbox", exc_type=ImportError)

STEPS = 50
EPS: dict[Norm, str] = {"Linf": "0.1", "L2": "0.5", "L1": "1.5"}


@cache
def _samples() -> tuple[torch.nn.Module, Tensor, Tensor]:
    model = robust_digits_network()
    _, _, inputs, labels = digits_data()
    right = predictions(model, inputs) == labels
    return model, inputs[right][:16], labels[right][:16]


@cache
def _found(kind: Any, norm: Norm, **parameters: Any) -> SearchResult:
    attack = kind(ThreatModel.of(norm, EPS[norm]), steps=STEPS, **parameters)
    return run_search(attack, *_samples()).found


@pytest.mark.parametrize(
    ("kind", "norm", "theirs"),
    [
        (FMN, "Linf", foolbox.attacks.LInfFMNAttack),
        (FMN, "L2", foolbox.attacks.L2FMNAttack),
        (FMN, "L1", foolbox.attacks.L1FMNAttack),
        (DDN, "L2", foolbox.attacks.DDNAttack),
    ],
)
def test_no_worse_than_foolboxs(kind: Any, norm: Norm, theirs: Any) -> None:
    model, inputs, labels = _samples()
    network = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    points, _, succeeded = theirs(steps=STEPS)(network, inputs, labels, epsilons=None)
    reference = torch.where(succeeded, norm_of(points - inputs, norm), torch.inf)
    mine = _found(kind, norm).found_size
    assert bool(mine.isfinite().all())
    assert float(mine.median()) <= 1.02 * float(reference.median())
    assert float(mine.max()) <= 1.1 * float(reference.max())


def test_a_fifth_of_carlini_wagners_passes_is_enough() -> None:
    slow = _found(CarliniWagnerL2, "L2", rounds=5)
    for kind in (DDN, FMN):
        found = _found(kind, "L2")
        assert int(found.broken.sum()) >= int(slow.broken.sum())
        # DDN's norm changes by 5 % at a time.
        assert float(found.found_size.median()) <= 1.05 * float(slow.found_size.median())
        assert 5 * int(found.backwards.max()) <= int(slow.backwards.max())


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_radius_decides_the_verdict_and_never_the_search(norm: Norm) -> None:
    small, large = (
        run_search(FMN(ThreatModel.of(norm, eps), steps=20), *_samples()).found
        for eps in ("0.001", "1")
    )
    assert not bool(small.broken.any())
    assert bool(small.found_size.isfinite().all())
    assert torch.equal(small.found_size, large.found_size)


def test_a_size_is_what_the_original_model_says_of_it() -> None:
    """The search's model gives way too early: what it takes for a find fools nobody."""
    model, inputs, labels, distance, threat_model = linear_problem("L2", 2)
    lenient = LinearModel(model.weight, model.bias - 0.5 * torch.sign(torch.tensor([1.0, -1.0])))
    found = run_search(FMN(threat_model), model, inputs, labels, search=SearchModel(lenient)).found
    assert not bool((found.found_size < distance * (1 - 1e-4)).any())
    # Of one class the lenient model's boundary lies nearer, of the other further away.
    assert bool(found.found_size.isinf().any())
    assert bool(found.found_size.isfinite().any())
    # Finds on the ball's border are larger by a rounding.
    assert torch.equal(found.broken, found.found_size <= threat_model.radius + 1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_what_is_found_is_as_large_as_it_says(norm: Norm) -> None:
    _, inputs, _ = _samples()
    found = _found(FMN, norm)
    size = norm_of(found.adv_inputs - inputs, norm)
    torch.testing.assert_close(
        size[found.broken], found.found_size[found.broken], rtol=1e-4, atol=1e-6
    )
    assert torch.equal(found.broken, found.found_size <= float(EPS[norm]))


@pytest.mark.parametrize(
    ("kind", "norm", "parameters", "says"),
    [
        (DDN, "Linf", {}, "minimises the L2 norm"),
        (DDN, "L2", {"initial_norm": 0.0}, "initial_norm must be above 0"),
        (DDN, "L2", {"shrinkage": 1.0}, "shrinkage must be below 1"),
        (FMN, "Linf", {"steps": 0}, "steps must be at least 1"),
        (FMN, "L1", {"step_size": 0.0}, "step_size must be above 0"),
    ],
)
def test_parameters_that_make_no_sense(
    kind: Any, norm: Norm, parameters: dict[str, Any], says: str
) -> None:
    with pytest.raises(AttackError, match=says):
        kind(ThreatModel.of(norm, EPS[norm]), **parameters)
