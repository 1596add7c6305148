from __future__ import annotations

import pytest
import torch

from robench.errors import UsageError
from robench.models.architectures.resnet import DigitsResNet
from robench.models.catalogue import ARCHITECTURES


def test_default_size_is_about_twenty_thousand_parameters() -> None:
    network = DigitsResNet()
    # stem 288 + 64, block 2 * (9216 + 64), classifier 330.
    assert sum(p.numel() for p in network.parameters()) == 288 + 64 + 2 * (9216 + 64) + 330


def test_doors_compose_and_the_map_keeps_the_input_size() -> None:
    torch.manual_seed(0)
    network = DigitsResNet(num_classes=4, in_channels=3, width=5, blocks=2).eval()
    inputs = torch.rand(2, 3, 8, 7)
    maps = network.forward_features(inputs)
    assert maps.shape == (2, 5, 8, 7)
    assert maps.min() >= 0
    pooled = network.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(pooled, maps.flatten(2).mean(2))
    torch.testing.assert_close(network(inputs), network.fc(pooled))


def test_parameter_names() -> None:
    network = DigitsResNet(blocks=2)
    names = {name for name, _ in network.named_parameters()}
    block = {"conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"}
    expected = {"conv1.weight", "bn1.weight", "bn1.bias", "fc.weight", "fc.bias"}
    assert names == expected | {f"blocks.{i}.{name}" for i in range(2) for name in block}


def test_a_zeroed_block_is_the_identity_on_its_nonnegative_input() -> None:
    network = DigitsResNet(width=4).eval()
    block = network.blocks[0]
    torch.nn.init.zeros_(block.get_parameter("bn2.weight"))
    maps = torch.rand(1, 4, 8, 8)
    torch.testing.assert_close(block(maps), maps)


def test_registry_builds_it() -> None:
    assert ARCHITECTURES["digits_resnet"] is DigitsResNet


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        DigitsResNet(width=0)
