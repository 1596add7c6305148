"""The layer that is chosen for transformers: a grid of patches that the logits are made of, or none."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as tv

from robench.attention import AttentionExtractor, attention_maps, grad_cam
from robench.attention.feature_maps import find_spatial_layer
from robench.errors import ModelError

timm = pytest.importorskip("timm")

VIT = {"embed_dim": 16, "num_heads": 2, "num_classes": 5}


def _timm(name: str, **arguments: object) -> nn.Module:
    return timm.create_model(name, pretrained=False, **arguments)


def _torchvisions_vit(layers: int) -> nn.Module:
    model = tv.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=layers,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=5,
    )
    nn.init.normal_(model.heads.head.weight)
    return model


def _torchvisions_swin() -> nn.Module:
    return tv.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=[4, 4],
        num_classes=5,
    )


def _torchvisions_convnext() -> nn.Module:
    block = tv.convnext.CNBlockConfig
    return tv.ConvNeXt([block(8, 16, 1), block(16, None, 1)], num_classes=5)


def _hybrid() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
    embed = partial(timm.layers.HybridEmbed, backbone=stem)
    return timm.models.VisionTransformer(
        img_size=32, patch_size=1, depth=2, embed_layer=embed, **VIT
    )


# Network → the layer (the last whose patches reach the logits) and the map's shape on 32 x 32.
FOUND: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, int]]] = {
    "torchvision ViT": (partial(_torchvisions_vit, 3), "encoder.layers.encoder_layer_1", (4, 4)),
    "timm ViT, class token": (
        partial(_timm, "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, **VIT),
        "blocks.1",
        (4, 4),
    ),
    "timm ViT, mean of tokens": (
        partial(
            _timm,
            "vit_tiny_patch16_224",
            img_size=32,
            patch_size=8,
            depth=3,
            class_token=False,
            global_pool="avg",
            **VIT,
        ),
        "norm",
        (4, 4),
    ),
    "timm ViT with registers": (
        partial(
            _timm, "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, reg_tokens=4, **VIT
        ),
        "blocks.0",
        (4, 4),
    ),
    "timm DeiT, distilled": (
        partial(
            _timm, "deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=2, **VIT
        ),
        "blocks.0",
        (4, 4),
    ),
    "hybrid": (_hybrid, "blocks.0", (4, 4)),
    "torchvision Swin": (_torchvisions_swin, "permute", (4, 4)),
    "timm Swin": (
        partial(
            _timm,
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=8,
            depths=(1, 1),
            num_heads=(2, 2),
            num_classes=5,
        ),
        "norm",
        (4, 4),
    ),
    "torchvision ConvNeXt": (_torchvisions_convnext, "features", (4, 4)),
    "timm ConvNeXt": (
        partial(_timm, "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 8, 16), num_classes=5),
        "stages.3.downsample.0",  # the norm before the convolution to a single cell
        (2, 2),
    ),
}

INPUTS = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([1, 4])


def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = FOUND[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():  # heads and scales that start at zero say nothing
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("name", FOUND)
def test_transformers_have_a_map_of_their_patches(name: str) -> None:
    model = _built(name)
    _, layer, shape = FOUND[name]
    assert find_spatial_layer(model, INPUTS) == layer
    maps = grad_cam(model, INPUTS, TARGETS)
    assert maps.shape == (2, *shape)
    assert float(maps.abs().sum()) > 0
    # What a wrapper adds to names is not the layer's.
    extractor = AttentionExtractor(model)
    torch.testing.assert_close(extractor(INPUTS, TARGETS), maps)
    assert extractor.describe() == f"grad_cam@{layer}"


@pytest.mark.parametrize("name", ["torchvision ViT", "timm ViT, class token", "hybrid"])
def test_token_maps_are_grad_cam_on_the_grid_of_patches(name: str) -> None:
    model = _built(name)
    _, layer, grid = FOUND[name]
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0]

    handle = model.get_submodule(layer).register_forward_hook(keep)
    scores = model(INPUTS).gather(1, TARGETS[:, None]).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(scores, kept[0])
    tokens, slopes = (t.detach()[:, -16:] for t in (kept[0], gradient))  # patches come last
    by_hand = (tokens * slopes.mean(dim=1, keepdim=True)).sum(dim=2).relu().view(2, *grid)
    torch.testing.assert_close(grad_cam(model, INPUTS, TARGETS), by_hand)


class _Attention(nn.Module):
    """Explicit attention, with q and k through modules, as (N, heads, T, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.q_norm, self.k_norm = nn.Linear(16, 48), nn.Identity(), nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        split = self.qkv(tokens).reshape(len(tokens), -1, 3, 2, 8).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        scores = self.q_norm(query) @ self.k_norm(key).transpose(2, 3)
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class _Bare(nn.Module):
    """One attention with a residual that no module computes: nothing here is the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed, self.attn, self.head = (
            nn.Conv2d(3, 16, 8, 8),
            _Attention(),
            nn.Linear(16, 5),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.patch_embed(inputs).flatten(2).transpose(1, 2)
        return self.head((tokens + self.attn(tokens)).mean(1))


def test_neither_attention_matrices_nor_embedded_patches_are_maps() -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="no layer's tokens are a map of the image"):
        grad_cam(_Bare().eval(), INPUTS, TARGETS)
    vit = _built("torchvision ViT")
    assert attention_maps(vit, INPUTS, TARGETS, method="rollout").shape == (2, 4, 4)


def test_a_layers_tokens_can_be_asked_for_by_name() -> None:
    model = _built("timm ViT, class token")
    assert grad_cam(model, INPUTS, TARGETS, layer="blocks.0").shape == (2, 4, 4)
    eleven = nn.Sequential(nn.Flatten(), nn.Linear(3072, 55), nn.Unflatten(1, (11, 5)), Mean())
    with pytest.raises(ModelError, match="do not form a grid"):
        grad_cam(eleven, INPUTS, TARGETS, layer="2")


class Mean(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.mean(dim=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_in_another_precision_is_named(dtype: torch.dtype) -> None:
    model = _built("torchvision ConvNeXt").to(dtype)
    with pytest.raises(ModelError, match=rf"in {dtype} and fails.*\.float\(\)"):
        attention_maps(model, INPUTS, TARGETS)


class _Backbone(nn.Module):
    """Hands its map on beside what it made of it, and a second map that nothing is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1))
        self.aside = nn.Conv2d(6, 6, 1)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        features = self.stages(inputs)
        self.aside(features)
        return {"map": features, "pooled": features.mean(dim=(2, 3))}


class _Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone()
        self.head = nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(inputs)["pooled"])
        return logits


def test_a_map_beside_what_was_made_of_it_is_not_chosen() -> None:
    torch.manual_seed(0)
    model = _Pooled().eval()
    assert find_spatial_layer(model, INPUTS) == "backbone.stages"
    maps = grad_cam(model, INPUTS, TARGETS)
    torch.testing.assert_close(maps, grad_cam(model, INPUTS, TARGETS, layer="backbone.stages.2"))
    assert float(maps.sum()) > 0


class _PoolsTokens(nn.Module):
    """16 tokens of 16 channels, whose mean goes through a pooling that leaves (N, 16, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.block = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(16, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.block(self.embed(inputs).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(self.pool(tokens.transpose(1, 2)).flatten(1))
        return logits


def test_pooled_channels_are_no_tokens() -> None:
    torch.manual_seed(0)
    model = _PoolsTokens().eval()
    assert find_spatial_layer(model, INPUTS) == "block"
    with pytest.raises(ModelError, match="one value for each of its channels"):
        grad_cam(model, INPUTS, TARGETS, layer="pool")
