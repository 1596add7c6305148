"""The common door to maps, feature sums, and full-size networks."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable

import pytest
import torch
from metric_values import attention_values
from torch import Tensor, nn

from robench.attention import (
    ATTENTION_METHODS,
    AttentionExtractor,
    feature_sum,
    feature_sum_map,
    grad_cam,
    rollout,
)
from robench.errors import ModelError, UnknownNameError, UsageError
from robench.records import AttentionSpec

torchvision = pytest.importorskip("torchvision")


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()


INPUTS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("module", ["feature_sum", "rollout", "token_grids"])
def test_examples_in_docstrings_run(module: str) -> None:
    # Functions of the same names stand before the modules in the package.
    result = doctest.testmod(importlib.import_module(f"robench.attention.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


# --- feature sums ----------------------------------------------------------------------------


def test_feature_sum_is_the_layers_own_output_summed_and_stretched() -> None:
    model = small_network()
    with torch.no_grad():
        features = model[0](INPUTS)  # before the activation that follows in place
    sums = features.sum(dim=1)
    low, high = sums.amin((1, 2), keepdim=True), sums.amax((1, 2), keepdim=True)
    maps = feature_sum(model, INPUTS, layer="0")
    torch.testing.assert_close(maps, (sums - low) / (high - low))
    assert maps.amin((1, 2)).tolist() == [0.0] * 4
    assert maps.amax((1, 2)).tolist() == [1.0] * 4
    assert not maps.requires_grad


def test_feature_sum_ignores_scale_and_offset() -> None:
    features = torch.rand(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(feature_sum_map(features), feature_sum_map(3 * features + 2))


def test_constant_features_attend_to_nothing() -> None:
    assert torch.equal(feature_sum_map(torch.ones(2, 3, 4, 4)), torch.zeros(2, 4, 4))
    with pytest.raises(UsageError, match="feature map"):
        feature_sum_map(torch.ones(3, 4, 4))


def test_feature_sum_is_differentiable() -> None:
    model = small_network()
    feature_sum(model, INPUTS, create_graph=True).sum().backward()
    assert model[0].weight.grad.abs().max() > 0
    features = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(feature_sum_map, features)


# --- one door --------------------------------------------------------------------------------


def test_cards_can_name_every_method_and_no_other() -> None:
    named = set(AttentionSpec.model_fields["method"].annotation.__args__)  # type: ignore[union-attr]
    assert set(ATTENTION_METHODS) == named - {"none"}


@pytest.mark.parametrize(
    "method, direct",
    [("grad_cam", grad_cam), ("feature_sum", feature_sum)],
)
def test_extractor_computes_and_describes(method: str, direct: Callable[..., Tensor]) -> None:
    model = small_network()
    extractor = AttentionExtractor(model, method=method)
    with pytest.raises(UsageError, match="not been chosen"):
        extractor.describe()
    maps = extractor(INPUTS, TARGETS)
    assert extractor.describe() == f"{method}@2"
    assert torch.equal(maps, direct(model, INPUTS, TARGETS, layer="2"))
    assert torch.equal(maps, AttentionExtractor(model, method=method)(INPUTS, TARGETS))
    assert AttentionExtractor(model, method=method, layer="0").describe() == f"{method}@0"


def test_the_layer_is_searched_for_once() -> None:
    model = small_network()
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _m, args: sizes.append(len(args[0])))
    extractor = AttentionExtractor(model)
    extractor(INPUTS, TARGETS)
    extractor(INPUTS, TARGETS)
    assert sizes == [1, 1, 4, 4]


def test_wrong_names_are_caught_before_any_pass() -> None:
    model = small_network()
    with pytest.raises(UnknownNameError, match="unknown layer '7'"):
        AttentionExtractor(model, layer="7")
    with pytest.raises(UnknownNameError, match="Did you mean 'grad_cam'"):
        AttentionExtractor(model, method="gradcam")
    with pytest.raises(UsageError, match="no layer to choose"):
        AttentionExtractor(model, method="rollout", layer="0")


# --- full size -------------------------------------------------------------------------------


def test_resnet18_at_224() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    inputs = torch.rand(2, 3, 224, 224)
    extractor = AttentionExtractor(model)
    maps = extractor(inputs, torch.tensor([3, 999]))
    assert extractor.describe() == "grad_cam@layer4"
    assert maps.shape == (2, 7, 7)
    values = attention_values(maps, extractor(inputs.flip(3), torch.tensor([3, 999])))
    assert all(value.shape == (2,) for value in values.values())


@pytest.mark.slow
def test_vit_b_16_at_224() -> None:
    # Every parameter is a piece of one random tensor: initialising 86 M of them takes seconds.
    with torch.device("meta"):
        model = torchvision.models.vit_b_16().eval()
    pool = 0.02 * torch.randn(2**22, generator=torch.Generator().manual_seed(0))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            piece = pool[: parameter.numel()].view(parameter.shape)
            setattr(module, name, nn.Parameter(piece, requires_grad=False))
    extractor = AttentionExtractor(model, method="rollout")
    maps = extractor(torch.rand(2, 3, 224, 224), torch.tensor([0, 1]))
    assert extractor.describe() == "rollout"
    assert maps.shape == (2, 14, 14)
    assert (maps > 0).all()
    assert (maps.flatten(1).sum(1) <= 1 + 1e-5).all()
    assert not attention_values(maps, maps)["attention_empty"].any()


def test_windowed_transformers_have_grad_cam_and_no_rollout() -> None:
    torch.manual_seed(0)
    model = torchvision.models.swin_transformer.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=[4, 4],
        num_classes=5,
    ).eval()
    inputs, targets = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
    maps = AttentionExtractor(model)(inputs, targets)
    assert maps.shape == (2, 8, 8)
    assert maps.amax() > 0
    # The same feature map, before and after its channels are moved to the front.
    torch.testing.assert_close(maps, grad_cam(model, inputs, targets, layer="norm"))
    with pytest.raises(ModelError, match="Use Grad-CAM"):
        rollout(model, inputs)
