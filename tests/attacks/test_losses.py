"""Closed-form gradients against autograd on independently written losses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robench.attacks import losses
from robench.attacks.losses import LOSSES, Loss, require_classes
from robench.errors import AttackError, UnknownNameError

seeds = st.integers(0, 2**31)


def _written_out(name: str, logits: Tensor, y: Tensor, t: Tensor) -> Tensor:
    rows = torch.arange(len(y))
    ordered = logits.sort(dim=1, descending=True).values
    others = logits.clone()
    others[rows, y] = -torch.inf
    other = others.max(dim=1).values
    own = logits[rows, y]
    if name == "ce":
        return nn.functional.cross_entropy(logits, y, reduction="none")
    if name == "margin":
        return other - own
    if name == "logit-difference":
        return logits[rows, t] - own
    if name == "dlr":
        return (other - own) / (ordered[:, 0] - ordered[:, 2])
    return (logits[rows, t] - own) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2)


def _problem(seed: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(12, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (12,), generator=generator)
    shift = torch.randint(1, classes, (12,), generator=generator)
    labels[:4] = logits[:4].argmax(dim=1)  # some classified correctly, most not
    return logits, labels, (labels + shift) % classes


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(4, 12), st.sampled_from(sorted(LOSSES)))
def test_values_and_gradients_equal_autograd(seed: int, classes: int, name: str) -> None:
    logits, labels, targets = _problem(seed, classes)
    leaf = logits.clone().requires_grad_()
    expected = _written_out(name, leaf, labels, targets)
    (slope,) = torch.autograd.grad(expected.sum(), leaf)
    value, gradient = LOSSES[name](logits, labels, targets)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-9)


@settings(deadline=None)
@given(seeds, st.sampled_from(["dlr", "dlr-targeted"]), st.floats(0.01, 100), st.floats(-5, 5))
def test_dlr_ignores_shift_and_scale(seed: int, name: str, scale: float, shift: float) -> None:
    logits, labels, targets = _problem(seed, 6)
    value, _ = LOSSES[name](logits, labels, targets)
    moved, _ = LOSSES[name](logits * scale + shift, labels, targets)
    torch.testing.assert_close(moved, value, rtol=1e-6, atol=1e-6)


@settings(deadline=None)
@given(seeds, st.sampled_from(sorted(LOSSES)))
def test_gradients_sum_to_zero_over_classes(seed: int, name: str) -> None:
    """Every loss is invariant to a shift of all logits."""
    logits, labels, targets = _problem(seed, 7)
    _, gradient = LOSSES[name](logits, labels, targets)
    scale = gradient.abs().amax(dim=1).clamp_min(1)
    assert bool((gradient.sum(dim=1).abs() <= 1e-9 * scale).all())


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_ties_give_finite_subgradients(name: str) -> None:
    """At ties the slope is that of one of the tied classes; with all logits equal DLR's is huge
    but finite, as the reference's guard has it."""
    logits = torch.tensor([[1.0, 1.0, 0.0, -1.0], [2.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    labels, targets = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 3])
    value, gradient = LOSSES[name](logits, labels, targets)
    assert bool(value.isfinite().all())
    assert bool(gradient.isfinite().all())
    if name in ("margin", "dlr"):
        assert float(value[0]) == 0.0
        assert gradient[0, 1] > 0 > gradient[0, 0]


def test_cross_entropy_survives_extreme_logits() -> None:
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    value, gradient = losses.cross_entropy(logits, torch.tensor([0, 0]), torch.tensor([0, 0]))
    assert value.tolist() == [0.0, 1e4]
    assert gradient.tolist() == [[0.0, 0.0], [-1.0, 1.0]]


@settings(deadline=None)
@given(seeds)
def test_the_margins_sign_is_the_verdict(seed: int) -> None:
    logits, labels, _ = _problem(seed, 5)
    assert torch.equal(losses.margin(logits, labels) < 0, logits.argmax(dim=1) != labels)


@pytest.mark.parametrize(
    ("name", "needed"), [("ce", 2), ("margin", 2), ("dlr", 3), ("dlr-targeted", 4)]
)
def test_losses_know_how_many_classes_they_need(name: str, needed: int) -> None:
    require_classes(name, needed)
    with pytest.raises(AttackError, match=f"needs {needed} classes, the model has {needed - 1}"):
        require_classes(name, needed - 1)


def test_a_loss_bound_to_slots_follows_them() -> None:
    logits, labels, targets = _problem(1, 5)
    bound = Loss(LOSSES["logit-difference"], labels, targets)
    rows = torch.tensor([7, 2, 11])
    some, _ = bound.at(rows)(logits[rows])
    assert torch.equal(some, bound(logits)[0][rows])


def test_unknown_losses_list_near_misses() -> None:
    with pytest.raises(UnknownNameError, match="dlr-targeted"):
        LOSSES["dlr-target"]
