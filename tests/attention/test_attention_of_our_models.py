"""Maps and features of robench's own architectures, bare and wrapped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from metric_values import attention_values
from torch import nn

from robench.attention import AttentionExtractor, grad_cam, rollout
from robench.models.architectures.resnet import DigitsResNet, PreActResNet, ResNet
from robench.models.architectures.reverse_attention import DigitsResNetRA
from robench.models.architectures.vit import VisionTransformer
from robench.models.wrapper import RobenchModel
from robench.records import InputSpec, ModelSummary
from robench.representations import penultimate_features
from robench.threat_models import ThreatModel


def wrapped(network: nn.Module, input_spec: InputSpec | None = None) -> RobenchModel:
    summary = ModelSummary(
        id="digits/Linf-0.2/test",
        name="test",
        dataset="digits",
        defense="standard",
        architecture="test",
        parameters=sum(p.numel() for p in network.parameters()),
        threat_model=ThreatModel.of("Linf", "0.2"),
        weights_sha256="0" * 64,
        fingerprint="0" * 64,
    )
    return RobenchModel(network, num_classes=10, summary=summary, input_spec=input_spec)


@pytest.mark.parametrize(
    "make, shape, grid, width",
    [
        (DigitsResNet, (1, 8, 8), (8, 8), 32),
        (DigitsResNetRA, (1, 8, 8), (8, 8), 32),
        (lambda: ResNet(width=4), (3, 32, 32), (4, 4), 32),
        (lambda: PreActResNet(width=4), (3, 32, 32), (4, 4), 32),
    ],
    ids=["digits", "digits-ra", "resnet", "preact-resnet"],
)
def test_convolutional_networks(
    make: Callable[[], nn.Module], shape: tuple[int, ...], grid: tuple[int, int], width: int
) -> None:
    torch.manual_seed(0)
    network = make()
    model = wrapped(network)
    inputs, targets = torch.rand(4, *shape), torch.arange(4)
    extractor = AttentionExtractor(model)
    maps = extractor(inputs, targets)
    assert maps.shape == (4, *grid)
    assert maps.amax() > 0
    layer = extractor.describe().removeprefix("grad_cam@")
    assert not layer.startswith("network")
    torch.testing.assert_close(maps, grad_cam(network, inputs, targets, layer=layer))
    features, logits = penultimate_features(model, inputs)
    assert features.shape == (4, width)
    torch.testing.assert_close(logits, network(inputs))
    assert not any(module.training for module in model.modules())


def test_the_cards_input_range_is_applied() -> None:
    torch.manual_seed(0)
    network = DigitsResNet()
    model = wrapped(network, InputSpec(channels=1, low=-1.0, high=1.0))
    inputs, targets = torch.rand(3, 1, 8, 8), torch.arange(3)
    maps = grad_cam(model, inputs, targets)
    torch.testing.assert_close(maps, grad_cam(network, 2 * inputs - 1, targets))


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_transformers_roll_out_what_they_expose(pool: str) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(pool=pool).eval()  # type: ignore[arg-type]
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = wrapped(network)
    inputs = torch.rand(3, 1, 8, 8)
    seen: list[torch.Tensor] = []
    hooks = [
        block.attn.register_forward_pre_hook(
            lambda module, args: seen.append(module.attention_weights(*args))
        )
        for block in network.blocks
    ]
    with torch.no_grad():
        model(inputs)
    for hook in hooks:
        hook.remove()
    tokens = seen[0].shape[-1]
    product = torch.eye(tokens).expand(3, tokens, tokens)
    for weights in seen:
        product = (0.5 * weights.mean(dim=1) + 0.5 * torch.eye(tokens)) @ product
    row = product[:, 0, 1:] if pool == "class" else product.mean(dim=1)
    maps = rollout(model, inputs)
    torch.testing.assert_close(maps, row.reshape(3, 4, 4))
    values = attention_values(maps, rollout(model, inputs.flip(3)))
    assert not values["attention_deviation"].isnan().any()
    assert penultimate_features(model, inputs)[0].shape == (3, 48)
