"""Forms of a network compute what the original computes, and leave it as it was."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from robench.acceleration.search_models import LOWER, SearchModel, Variant, build_variant
from robench.attacks.losses import LOSSES, Loss
from robench.datasets import load_dataset
from robench.models import load_model, wrap_module
from robench.models.wrapper import RobenchModel, buffer_fingerprint


@pytest.fixture(scope="module")
def digits() -> tuple[RobenchModel, Tensor, Tensor]:
    data = load_dataset("digits").subset(64)
    return load_model("digits/Linf-0.2/pgd-at"), data.batch(range(64)), data.labels


def batch_norms(form: SearchModel) -> list[nn.Module]:
    return [part for part in form.module.modules() if isinstance(part, nn.BatchNorm2d)]


def test_folding_batch_norm_changes_rounding_only(digits) -> None:
    model, inputs, labels = digits
    before = buffer_fingerprint(model)
    folded, plain = build_variant(model, Variant(folded=True)), SearchModel(model)
    assert folded is not None
    assert folded.description == "fp32 folded"
    assert batch_norms(plain)
    assert not batch_norms(folded)
    loss = Loss(LOSSES["ce"], labels, labels)
    expected, seen = plain.gradient(inputs, loss), folded.gradient(inputs, loss)
    torch.testing.assert_close(folded.logits(inputs), model(inputs), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.gradient, expected.gradient, atol=1e-5, rtol=1e-3)
    assert buffer_fingerprint(model) == before


@pytest.mark.parametrize("name", ["tf32", "bf16", "fp16"])
def test_lower_precision_takes_and_gives_float32_and_keeps_the_direction(digits, name) -> None:
    model, inputs, labels = (digits[0], digits[1][:16], digits[2][:16])
    form, plain = build_variant(model, LOWER[name]), SearchModel(model)
    assert form is not None
    assert form.description == f"{name} folded channels-last"
    loss = Loss(LOSSES["ce"], labels, labels)
    expected, seen = plain.gradient(inputs, loss), form.gradient(inputs, loss)
    assert seen.logits.dtype == seen.gradient.dtype == form.logits(inputs).dtype == torch.float32
    assert seen.gradient.is_contiguous()
    assert (seen.logits - expected.logits).abs().max() < 0.1 * float(expected.logits.std())
    similarity = nn.functional.cosine_similarity(
        seen.gradient.flatten(1), expected.gradient.flatten(1)
    )
    assert float(similarity.median()) > 0.98


def test_the_slopes_of_all_logits_are_those_of_one_after_the_other(digits) -> None:
    model, inputs, _ = digits
    form = build_variant(model, Variant(folded=True))
    assert form is not None
    logits, slopes = form.jacobian(inputs[:3])
    point = inputs[:3].clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(point)[:, 7].sum(), point)
    torch.testing.assert_close(slopes[:, 7], expected, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(logits, model(inputs[:3]), atol=1e-4, rtol=0)


def test_tf32_is_switched_on_for_its_own_passes_only(digits) -> None:
    model, inputs, labels = digits
    seen = []

    class Watching(nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            seen.append(torch.backends.cuda.matmul.allow_tf32)
            return model(points)

    form = build_variant(model, LOWER["tf32"])
    assert form is not None
    loss = Loss(LOSSES["ce"], labels, labels)
    for asked in (SearchModel(Watching()), SearchModel(Watching(), setting=form.setting)):
        asked.logits(inputs)
        asked.gradient(inputs, loss)
        asked.jacobian(inputs[:1])
    assert seen == [False] * 3 + [True] * 3
    assert not torch.backends.cuda.matmul.allow_tf32


def test_networks_whose_forward_takes_more_than_inputs_are_folded_too() -> None:
    data = load_dataset("digits").subset(16)
    model = load_model("digits/Linf-0.2/ancra")  # forward(inputs, y=None, _eval=None)
    folded = build_variant(model, Variant(folded=True))
    assert folded is not None
    assert not batch_norms(folded)
    points = data.batch(range(16))
    assert torch.allclose(folded.logits(points), model(points), atol=1e-4)


class Asking(nn.Module):
    """Works with one argument's value only, which its card gives."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = load_model("digits/Linf-0.2/pgd-at").network

    def forward(self, inputs: Tensor, mode: str | None = None) -> tuple[Tensor]:
        if mode != "logits":
            raise ValueError(mode)
        return (self.inner(inputs),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_card_passes_to_forward_is_passed_to_the_folded_network(dtype) -> None:
    forward = {"arguments": {"mode": "logits"}, "output": [0]}
    model = wrap_module(Asking(), num_classes=10, input={"channels": 1}, forward=forward)
    folded = build_variant(model, Variant(dtype, folded=True))
    assert folded is not None
    assert not batch_norms(folded)
    points = load_dataset("digits").batch(range(16))
    assert torch.allclose(
        folded.logits(points), model(points), atol=1e-4 if dtype.itemsize > 2 else 0.5
    )


def test_no_form_is_called_folded_that_had_nothing_to_fold() -> None:
    model = load_model("digits/Linf-0.2/vit-pgd-at")
    assert build_variant(model, Variant(folded=True)) is None
    other = build_variant(model, LOWER["bf16"])
    assert other is not None
    assert other.description == "bf16 channels-last"


@pytest.mark.parametrize("missing", ["torch.fx", "torch.fx.experimental.optimization"])
def test_where_torch_cannot_fold_networks_run_unfolded(digits, monkeypatch, missing) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # importing it fails
    assert build_variant(digits[0], Variant(folded=True)) is None
    other = build_variant(digits[0], LOWER["tf32"])
    assert other is not None
    assert other.description == "tf32 channels-last"


class Constant(nn.Module):
    """Does not look at its input."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ones(len(inputs), 3)


class Detached(nn.Module):
    """Has parameters that need gradients, and none for its input."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.bias.expand(len(inputs), 3)


@pytest.mark.parametrize("network", [Constant(), Detached()])
def test_what_does_not_depend_on_its_input_has_no_slope(network: nn.Module) -> None:
    labels = torch.tensor([0, 2])
    seen = SearchModel(network).gradient(torch.rand(2, 1, 4, 4), Loss(LOSSES["ce"], labels, labels))
    assert torch.equal(seen.gradient, torch.zeros(2, 1, 4, 4))
