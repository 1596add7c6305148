"""Each network against an independent account of what it computes.

``reference_*`` follow the papers' block diagrams straight from a state dict; pyautoattack's and
timm's own modules are the judges where they exist.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.errors import CardError, ModelError, UsageError
from robench.models import ARCHITECTURES, build_architecture, load_model
from robench.models.architectures.resnet import PreActResNet, ResNet
from robench.models.architectures.reverse_attention import (
    DigitsResNetRA,
    ResNetRA,
    WideResNetRA,
    reverse_attention,
)
from robench.models.architectures.vit import VisionTransformer
from robench.models.architectures.wide_resnet import WideResNet
from robench.records import ArchitectureSpec

State = dict[str, Tensor]

# name, arguments that make it small, input shape, shape of the last map
SMALL: list[tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
    ("digits_resnet", {"width": 4}, (1, 8, 8), (4, 8, 8)),
    ("digits_resnet_ra", {"width": 4, "blocks": 2}, (1, 8, 8), (4, 8, 8)),
    ("small_cnn", {"width": 4}, (1, 8, 8), (8, 4, 4)),
    ("vit", {"width": 8, "heads": 2}, (1, 8, 8), (16, 8)),
    ("resnet18", {"width": 4}, (3, 32, 32), (32, 4, 4)),
    ("preact_resnet18", {"width": 4}, (3, 32, 32), (32, 4, 4)),
    ("wide_resnet", {"depth": 10, "widen_factor": 1}, (3, 32, 32), (64, 8, 8)),
    ("resnet18_ra", {"width": 4}, (3, 32, 32), (32, 4, 4)),
    ("wide_resnet_ra", {"depth": 16, "widen_factor": 1}, (3, 32, 32), (64, 8, 8)),
]


def settled(network: nn.Module, shape: tuple[int, ...], **arguments: Any) -> nn.Module:
    """Move the running statistics off their defaults, so that forgetting them shows."""
    network.train()
    for _ in range(2):
        network(torch.rand(8, *shape), **arguments)
    return network.eval()


def test_the_table_above_is_complete() -> None:
    assert {name for name, *_ in SMALL} == set(ARCHITECTURES)


@pytest.mark.parametrize("name, arguments, shape, map_shape", SMALL)
def test_doors(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...], map_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    spec = ArchitectureSpec(name=name, arguments=arguments)
    network: Any = build_architecture(spec, num_classes=7, in_channels=shape[0]).eval()
    inputs = torch.rand(3, *shape)
    logits = network(inputs)
    maps = network.forward_features(inputs)
    assert logits.shape == (3, 7)
    assert maps.shape == (3, *map_shape)
    torch.testing.assert_close(network.forward_head(maps), logits)
    pooled = network.forward_head(maps, pre_logits=True)
    classifier = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    torch.testing.assert_close(classifier(pooled), logits)
    # One image's logits do not depend on its batch mates.
    torch.testing.assert_close(network(inputs[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, parameters",
    # Counts that the papers and their code give (RA adds none; ANCRA's WRN has a spare stage).
    [("resnet18", 11_173_962), ("preact_resnet18", 11_172_170), ("resnet18_ra", 11_173_962)],
)
def test_published_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name]()
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("depth, parameters", [(28, 36_479_194), (34, 46_160_474)])
def test_published_sizes_of_wide_networks(depth: int, parameters: int) -> None:
    with torch.device("meta"):
        network = WideResNet(depth=depth)
    assert sum(p.numel() for p in network.parameters()) == parameters


# --- references ---------------------------------------------------------------------------------


def bn(state: State, name: str, maps: Tensor) -> Tensor:
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(maps, mean, var, state[f"{name}.weight"], state[f"{name}.bias"])


def conv(state: State, name: str, maps: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(maps, weight, stride=stride, padding=weight.shape[-1] // 2)


def reference_wide_block(state: State, name: str, maps: Tensor, stride: int) -> Tensor:
    active = F.relu(bn(state, f"{name}.bn1", maps))
    out = F.relu(bn(state, f"{name}.bn2", conv(state, f"{name}.conv1", active, stride)))
    out = conv(state, f"{name}.conv2", out)
    if f"{name}.convShortcut.weight" in state:
        return out + conv(state, f"{name}.convShortcut", active, stride)
    return out + maps


def reference_wide(state: State, inputs: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    maps = conv(state, "conv1", inputs)
    for stage in (1, 2, 3):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            maps = reference_wide_block(state, f"block{stage}.layer.{i}", maps, stride)
    maps = F.relu(bn(state, "bn1", maps))
    pooled = F.avg_pool2d(maps, maps.shape[-1]).flatten(1)
    return maps, pooled, F.linear(pooled, state["fc.weight"], state["fc.bias"])


def reference_basic_block(state: State, name: str, maps: Tensor, stride: int) -> Tensor:
    out = F.relu(bn(state, f"{name}.bn1", conv(state, f"{name}.conv1", maps, stride)))
    out = bn(state, f"{name}.bn2", conv(state, f"{name}.conv2", out))
    if f"{name}.shortcut.0.weight" in state:
        skip = conv(state, f"{name}.shortcut.0", maps, stride)
        return F.relu(out + bn(state, f"{name}.shortcut.1", skip))
    return F.relu(out + maps)


def reference_mask(
    state: State, maps: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias = state["fc.weight"], state["fc.bias"]
    auxiliary = F.linear(F.avg_pool2d(maps, maps.shape[-1]).flatten(1), weight, bias)
    chosen = auxiliary.argmax(1) if labels is None else labels
    masked = torch.stack([m * weight[c].view(-1, 1, 1) for m, c in zip(maps, chosen, strict=True)])
    final = F.linear(F.avg_pool2d(masked, masked.shape[-1]).flatten(1), weight, bias)
    return masked, auxiliary, final


def reference_resnet_ra(
    state: State, inputs: Tensor, labels: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    maps = F.relu(bn(state, "bn1", conv(state, "conv1", inputs)))
    auxiliary, final = [], maps
    for layer in (1, 2, 3, 4):
        for i in range(2):
            stride = 2 if layer > 1 and i == 0 else 1
            maps = reference_basic_block(state, f"layer{layer}.{i}", maps, stride)
            if layer == 4:
                maps, logits, final = reference_mask(state, maps, labels)
                auxiliary.append(logits)
    return final, auxiliary


def reference_wide_ra(
    state: State, inputs: Tensor, count: int, labels: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    maps = conv(state, "conv1", inputs)
    auxiliary, final = [], maps
    for stage in (1, 2, 3):
        for i in range(count):
            stride = 2 if stage > 1 and i == 0 else 1
            maps = reference_wide_block(state, f"block{stage}.layer.{i}", maps, stride)
            if stage == 3 and i >= count - 2:
                maps = F.relu(bn(state, "bn1", maps))
                maps, logits, final = reference_mask(state, maps, labels)
                auxiliary.append(logits)
    return final, auxiliary


def test_wide_resnet_is_the_papers() -> None:
    torch.manual_seed(1)
    network: Any = settled(WideResNet(5, 3, depth=16, widen_factor=2, stem=4), (3, 16, 16))
    inputs = torch.rand(2, 3, 16, 16)
    maps, pooled, logits = reference_wide(network.state_dict(), inputs, count=2)
    torch.testing.assert_close(network(inputs), logits)
    torch.testing.assert_close(network.forward_features(inputs), maps)
    torch.testing.assert_close(network.forward_head(maps, pre_logits=True), pooled)


@pytest.mark.parametrize("by_label", [False, True])
@pytest.mark.parametrize(
    "network, shape, reference",
    [
        (ResNetRA(5, 3, width=4), (3, 16, 16), reference_resnet_ra),
        (
            WideResNetRA(5, 3, depth=22, widen_factor=2, stem=4),
            (3, 16, 16),
            lambda state, inputs, labels: reference_wide_ra(state, inputs, 3, labels),
        ),
    ],
)
def test_reverse_attention_is_the_papers(
    network: nn.Module,
    shape: tuple[int, ...],
    reference: Callable[..., tuple[Tensor, list[Tensor]]],
    by_label: bool,
) -> None:
    torch.manual_seed(2)
    settled(network, shape, y=torch.arange(8) % 5, _eval=False)
    inputs, labels = torch.rand(4, *shape), torch.tensor([4, 0, 3, 1])
    final, auxiliary = reference(network.state_dict(), inputs, labels if by_label else None)
    ours, ours_auxiliary = network(inputs, y=labels, _eval=not by_label)
    torch.testing.assert_close(ours, final)
    assert len(ours_auxiliary) == len(auxiliary) == 2
    for a, b in zip(ours_auxiliary, auxiliary, strict=True):
        torch.testing.assert_close(a, b)
    if not by_label:
        torch.testing.assert_close(network(inputs), final)
        assert not network.training


def test_reverse_attention_by_hand() -> None:
    fc = nn.Linear(2, 2)
    with torch.no_grad():
        fc.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
        fc.bias.copy_(torch.tensor([0.0, 0.5]))
    maps = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])
    # Means (2, 1) give logits (4, 5.5): class 1, whose row is (3, -1).
    masked, logits = reverse_attention(maps, fc, None)
    assert logits.tolist() == [[4.0, 5.5]]
    assert masked.tolist() == [[[[3.0, 9.0]], [[0.0, -2.0]]]]
    masked, _ = reverse_attention(maps, fc, torch.tensor([0]))
    assert masked.tolist() == [[[[1.0, 3.0]], [[0.0, 4.0]]]]


def test_reverse_attention_needs_labels_in_training() -> None:
    with pytest.raises(UsageError, match="needs labels"):
        DigitsResNetRA(width=4)(torch.rand(1, 1, 8, 8), _eval=False)


def test_digits_network_with_reverse_attention_shares_the_trunk_with_the_plain_one() -> None:
    torch.manual_seed(0)
    network: Any = DigitsResNetRA(width=4, blocks=2).eval()
    plain: Any = ARCHITECTURES["digits_resnet"](width=4, blocks=2).eval()
    plain.load_state_dict(network.state_dict())
    inputs = torch.rand(2, 1, 8, 8)
    # The auxiliary logits are what the network would say without the mask.
    torch.testing.assert_close(network(inputs, _eval=True)[1][0], plain(inputs))


# --- parameter names --------------------------------------------------------------------------


def expand(*patterns: str, **ranges: str) -> set[str]:
    """Replace {x} in the patterns by each character of ranges[x]."""
    names = set(patterns)
    for key, values in ranges.items():
        names = {n.replace(f"{{{key}}}", v) for n in names for v in values}
    return names


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def with_norms(*names: str) -> set[str]:
    return {f"{name}.{part}" for name in names for part in NORM}


def basic_names(layer: str, indices: str) -> set[str]:
    names = expand(f"{layer}.{{i}}.conv{{c}}.weight", i=indices, c="12")
    return names | with_norms(*expand(f"{layer}.{{i}}.bn{{c}}", i=indices, c="12"))


def wide_names(count: int) -> set[str]:
    indices = "0123456789"[:count]
    names = {"conv1.weight", "fc.weight", "fc.bias"} | with_norms("bn1")
    for block in ("block1", "block2", "block3"):
        names |= basic_names(f"{block}.layer", indices)
        names |= {f"{block}.layer.0.convShortcut.weight"}
    return names


def test_names_of_the_residual_networks() -> None:
    stem = {"conv1.weight"} | with_norms("bn1")
    layers = set().union(*(basic_names(f"layer{i}", "01") for i in range(1, 5)))
    skips = expand("layer{l}.0.shortcut.0.weight", l="234")
    skips |= with_norms(*expand("layer{l}.0.shortcut.1", l="234"))
    body = stem | layers | skips
    assert set(ResNet(width=1).state_dict()) == body | {"linear.weight", "linear.bias"}
    assert set(ResNet(width=1, head="fc").state_dict()) == body | {"fc.weight", "fc.bias"}
    assert set(ResNetRA(width=1).state_dict()) == body | {"fc.weight", "fc.bias"}
    preact = {"conv1.weight", "linear.weight", "linear.bias"} | with_norms("bn") | layers
    preact |= expand("layer{l}.0.shortcut.0.weight", l="234")
    assert set(PreActResNet(width=1).state_dict()) == preact


def test_names_of_the_wide_networks() -> None:
    small = {"depth": 28, "widen_factor": 2, "stem": 1}
    assert set(WideResNet(**small).state_dict()) == wide_names(4)
    spare = basic_names("sub_block1.layer", "0123") | {"sub_block1.layer.0.convShortcut.weight"}
    assert set(WideResNetRA(**small).state_dict()) == wide_names(4) | spare
    assert set(WideResNetRA(**small, sub_block=False).state_dict()) == wide_names(4)


# --- other libraries as judges ------------------------------------------------------------------


def test_the_shipped_cifar10_checkpoint_gives_its_own_networks_logits() -> None:
    import pyautoattack

    folder = Path(pyautoattack.__file__).parent / "examples"
    spec = importlib.util.spec_from_file_location("their_resnet", folder / "resnet.py")
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    network = theirs.ResNet18()
    network.load_state_dict(
        torch.load(folder / "model_test.pt", map_location="cpu", weights_only=True)
    )
    model = load_model("cifar10/Linf-8_255/pyautoattack-resnet18")
    inputs = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(inputs), network.eval()(inputs))
    assert model.summary.parameters == 11_173_962
    # AutoAttack's example passes images in [0, 1] as they are.
    assert model.prepare(inputs) is inputs


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_the_transformer_is_timms(pool: str) -> None:
    from timm.models.vision_transformer import VisionTransformer as Theirs

    torch.manual_seed(3)
    ours = VisionTransformer(5, 2, (8, 12), 4, width=12, depth=3, heads=3, pool=pool).eval()  # type: ignore[arg-type]
    theirs = Theirs(
        img_size=(8, 12),
        patch_size=4,
        in_chans=2,
        num_classes=5,
        embed_dim=12,
        depth=3,
        num_heads=3,
        mlp_ratio=2,
        class_token=pool == "class",
        global_pool="token" if pool == "class" else "avg",
        fc_norm=False,
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    inputs = torch.rand(2, 2, 8, 12)
    torch.testing.assert_close(ours(inputs), theirs(inputs))


def test_the_transformers_weights_explain_its_attention() -> None:
    torch.manual_seed(4)
    attention = VisionTransformer(width=8, heads=2).blocks[0].attn
    tokens = torch.randn(3, 16, 8)
    weights = attention.attention_weights(tokens)
    assert weights.shape == (3, 2, 16, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 16))
    value = attention.qkv(tokens)[..., 16:].view(3, 16, 2, 4).transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.proj(mixed), attention(tokens))


def test_the_default_transformer_fits_the_digits() -> None:
    assert 20_000 <= sum(p.numel() for p in VisionTransformer().parameters()) <= 60_000


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: WideResNet(depth=30), "6n"),
        (lambda: WideResNetRA(depth=10), "depth 16 or more"),
        (lambda: WideResNet(widen_factor=0), "at least 1"),
        (lambda: ResNet(stages=(2, 2)), "four stages"),
        (lambda: ResNet(head="top"), "'linear' or 'fc'"),
        (lambda: PreActResNet(width=0), "at least 1"),
        (lambda: DigitsResNetRA(blocks=1, masked=2), "cannot mask 2 of 1"),
        (lambda: VisionTransformer(patch=3), "do not tile"),
        (lambda: VisionTransformer(heads=5), "do not divide"),
        (lambda: VisionTransformer(pool="max"), "'mean' or 'class'"),  # type: ignore[arg-type]
        (lambda: VisionTransformer(depth=0), "at least 1"),
    ],
)
def test_impossible_sizes_are_refused(build: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build()


def test_the_transformer_names_its_image_size() -> None:
    with pytest.raises(ModelError, match=r"takes images of \(8, 8\), got \(9, 8\)"):
        VisionTransformer()(torch.rand(1, 1, 9, 8))


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("digits_resnet", {"blocks": 10**9}, "blocks = 1000000000: no network has"),
        ("digits_resnet", {"blocks": True}, "blocks = True is not a whole number"),
        ("resnet18", {"stages": [2, 2, 2, 10**9]}, "stages = .*: no network has"),
        ("timm:resnet18", {"output_stride": 10**9}, "output_stride = 1000000000: no network has"),
    ],
)
def test_a_number_that_no_network_has_is_refused_before_it_is_built(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    spec = ArchitectureSpec(name=name, arguments=arguments)
    with pytest.raises(CardError, match=said):
        build_architecture(spec, 3, 3)
