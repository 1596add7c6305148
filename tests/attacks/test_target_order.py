"""MALT's order of targets: on linear models the exact distances, on a network autograd's."""

from __future__ import annotations

import pytest
import torch
from attack_models import (
    ExactNetwork,
    LinearModel,
    PlainQuery,
    TinyCNN,
    images,
    linear_problem,
    predictions,
    run_search,
)
from torch import Tensor

from robench.attacks.apgd import APGD
from robench.attacks.fab import FAB
from robench.attacks.target_order import searches_of
from robench.errors import UnknownNameError
from robench.threat_models import Norm, ThreatModel

_DUAL_ORDER: dict[Norm, float] = {"Linf": 1.0, "L2": 2.0, "L1": torch.inf}


def _ranked(norm: Norm, model: LinearModel, inputs: Tensor, labels: Tensor) -> Tensor:
    attack = APGD(ThreatModel.of(norm, 0.1), loss="dlr-targeted", target_order="malt")
    query = PlainQuery(model)
    logits = model(inputs)
    numbers = attack.search_order(query, inputs, labels, logits)
    assert numbers is not None
    assert len(query.seen) == 1
    return nth_rivals(logits, labels, numbers)


def nth_rivals(logits: Tensor, labels: Tensor, ranks: Tensor) -> Tensor:
    """Classes (B, T) by their ranks among the wrong ones."""
    rivals = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)
    return rivals.gather(1, ranks)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_linear_models_classes_come_by_their_distance(norm: Norm) -> None:
    """Nine of eleven, and not those of the largest logits."""
    model, inputs, labels, _, _ = linear_problem(norm, 12)
    # Slopes of many lengths, so that a small lead may be far away.
    model.weight.mul_(torch.arange(1.0, 13.0)[:, None].double())
    logits = model(inputs).double()
    labels = logits.argmax(dim=1)
    lead = logits.gather(1, labels[:, None]) - logits
    slopes = model.weight[labels][:, None] - model.weight[None]
    distance = lead / torch.linalg.vector_norm(slopes, ord=_DUAL_ORDER[norm], dim=2)
    expected = distance.scatter(1, labels[:, None], torch.inf).argsort(dim=1)[:, :9]
    assert torch.equal(_ranked(norm, model, inputs, labels), expected)
    by_logits = logits.argsort(dim=1, descending=True)[:, 1:10]
    assert set(by_logits[0].tolist()) != set(expected[0].tolist())


def test_only_the_hundred_largest_logits_are_asked_about() -> None:
    """Of all others not even the nearest boundary is known."""
    weight = torch.zeros(120, 16)
    weight[0], weight[1:, 0] = 1.0, torch.arange(1.0, 120.0)
    weight[119] = 1e4  # the steepest by far
    bias = torch.cat((torch.tensor([1e3]), -torch.arange(119.0)))
    bias[119] = -1e6
    model, inputs = LinearModel(weight, bias), images(3, (1, 4, 4))
    ranked = _ranked("L2", model, inputs, torch.zeros(3, dtype=torch.int64))
    assert ranked.shape == (3, 9)
    assert not bool((ranked == 119).any())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_networks_classes_come_by_their_linearised_distance(norm: Norm) -> None:
    model, inputs = TinyCNN(), images(5)
    labels = predictions(model, inputs)
    attack = FAB(ThreatModel.of(norm, 0.1), targets=4, target_order="malt")
    logits = model(inputs)
    numbers = attack.search_order(PlainQuery(model), inputs, labels, logits)
    assert numbers is not None
    ranked = nth_rivals(logits, labels, numbers)
    exact = TinyCNN().double()
    for row, label in enumerate(labels.tolist()):
        distances = {}
        for rival in set(range(6)) - {label}:
            point = inputs[row : row + 1].double().requires_grad_()
            logits = exact(point)[0]
            lead = logits[label] - logits[rival]
            (slope,) = torch.autograd.grad(lead, point)
            order = _DUAL_ORDER[norm]
            distances[rival] = float(
                lead.detach() / torch.linalg.vector_norm(slope.flatten(), ord=order)
            )
        assert ranked[row].tolist() == sorted(distances, key=distances.__getitem__)[:4]


def test_a_boundary_that_nothing_leads_to_comes_last() -> None:
    """Class 1 has the label's own slope: whatever its lead, it is never overtaken."""
    weight = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0], [-4.0, 0.0]])
    model = LinearModel(weight, torch.tensor([0.5, 0.4, 0.0, 0.0]))
    inputs = torch.full((1, 1, 1, 2), 0.5)
    assert _ranked("L2", model, inputs, torch.zeros(1, dtype=torch.int64)).tolist() == [[3, 2, 1]]


@pytest.mark.parametrize("kind", [APGD, FAB])
def test_with_few_targets_it_finds_what_the_order_of_the_logits_misses(
    kind: type[APGD] | type[FAB],
) -> None:
    """Each sample's second class is far away for all its logit, and its last one near."""
    weight = torch.zeros(12, 16)
    weight[1] = -0.01
    weight[11] = 10.0
    bias = torch.tensor([1.0, 1.01] + [0.5] * 9 + [-79.8])
    model, inputs = LinearModel(weight, bias), torch.full((4, 1, 4, 4), 0.5)
    labels = torch.zeros(4, dtype=torch.int64)
    threat = ThreatModel.of("Linf", 0.01)
    loss = {"loss": "dlr-targeted"} if kind is APGD else {}
    options = {"steps": 10, "targets": 1, **loss}
    missed = run_search(kind(threat, **options), model, inputs, labels).found
    found = run_search(kind(threat, target_order="malt", **options), model, inputs, labels).found
    assert not bool(missed.broken.any())
    assert bool(found.broken.all())


def test_restarts_of_a_target_follow_each_other() -> None:
    ranks = torch.tensor([[2, 0, 1], [0, 1, 2]])
    assert searches_of(ranks, 2, 2).tolist() == [[4, 5, 0, 1], [0, 1, 2, 3]]


def test_with_few_classes_it_makes_the_same_searches_in_another_order() -> None:
    """So that it breaks what the reference's order breaks, to the last sample."""
    model, inputs = ExactNetwork(), images(40, seed=1)
    labels = predictions(model, inputs)
    options = {"steps": 6, "loss": "dlr-targeted", "targets": 5}
    threat = ThreatModel.of("Linf", "0.02")
    plain, ranked = (
        run_search(APGD(threat, target_order=order, **options), model, inputs, labels).found
        for order in ("logits", "malt")
    )
    assert torch.equal(plain.broken, ranked.broken)
    assert 0 < int(plain.broken.sum()) < 40
    assert int(ranked.search[ranked.broken].sum()) < int(plain.search[plain.broken].sum())
    survived = ~plain.broken
    assert torch.equal(plain.closest_margin[survived], ranked.closest_margin[survived])


def test_the_passes_are_counted_once_a_sample() -> None:
    """One forward pass, one backward pass a candidate, for all of a sample's searches together."""
    model, inputs, labels, _, _ = linear_problem("L2", 5)
    threat = ThreatModel.of("L2", "0.000001")
    options = {"steps": 3, "loss": "dlr-targeted", "targets": 2}
    for batch_size in (7, 500):
        plain, ranked = (
            run_search(
                APGD(threat, target_order=order, **options),
                model,
                inputs,
                labels,
                batch_size=batch_size,
            ).found
            for order in ("logits", "malt")
        )
        assert (ranked.forwards - plain.forwards).unique().tolist() == [1]
        assert (ranked.backwards - plain.backwards).unique().tolist() == [4]


@pytest.mark.parametrize("kind", [APGD, FAB])
def test_an_unknown_order_is_refused(kind: type[APGD] | type[FAB]) -> None:
    with pytest.raises(UnknownNameError, match=r"target order 'mat'.*'malt'"):
        kind(ThreatModel.of("L2", 0.1), target_order="mat")
