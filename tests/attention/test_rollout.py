"""Rollout: exact small cases, and weights that equal what the libraries apply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.attention.rollout import rollout, rollout_tokens, token_grid
from robench.attention.softmax_weights import recorded_weights, softmax_weights
from robench.errors import ModelError, UsageError

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


class Exposing(nn.Module):
    """Attention with given weights, which it can tell."""

    exposes_attention = True

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def attention_weights(self, tokens: Tensor) -> Tensor:
        return self.weights.expand(len(tokens), *self.weights.shape)

    def forward(self, tokens: Tensor) -> Tensor:
        return (self.attention_weights(tokens) @ tokens[:, None]).mean(dim=1)


class Layers(nn.Module):
    """Every pixel is a token; a class token of zeros may come first."""

    def __init__(self, layers: list[nn.Module], class_token: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.has_class_token = class_token

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.flatten(2).transpose(1, 2)
        if self.has_class_token:
            tokens = torch.cat([tokens.new_zeros(len(tokens), 1, tokens.shape[2]), tokens], dim=1)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        return tokens[:, 0]


# Two layers, two heads, a class token and a 1 x 2 image: T = 3.
FIRST = torch.tensor(
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]],
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]],
    ]
)
SECOND = torch.tensor(
    [
        [[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    ]
)
# Means over heads, halved, plus half the identity:
#   A1 = [[.75, .25, 0], [0, .75, .25], [.25, .25, .5]]
#   A2 = [[.5, .25, .25], [0, 1, 0], [0, 0, 1]]
# A2 A1, by hand:
ROLLED = torch.tensor([[0.4375, 0.375, 0.1875], [0.0, 0.75, 0.25], [0.25, 0.25, 0.5]])


def test_two_layers_by_hand() -> None:
    for token in range(3):
        start = F.one_hot(torch.tensor([token]), 3).float()
        assert torch.equal(rollout_tokens([FIRST[None], SECOND[None]], start), ROLLED[token][None])


def test_map_is_the_class_tokens_row_of_a_two_layer_network() -> None:
    model = Layers([Exposing(FIRST), Exposing(SECOND)], class_token=True)
    maps = rollout(model, torch.rand(4, 3, 1, 2))
    assert torch.equal(maps, ROLLED[None, :1, 1:].expand(4, 1, 2))


def test_map_is_the_mean_over_tokens_without_a_class_token() -> None:
    first = torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])
    second = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    # A1 = [[.75, .25], [.5, .5]], A2 = [[1, 0], [.5, .5]]; their product and its column means:
    #   [[.75, .25], [.625, .375]] -> .6875, .3125
    model = Layers([Exposing(first), Exposing(second)], class_token=False)
    maps = rollout(model, torch.rand(2, 3, 1, 2))
    assert torch.equal(maps, torch.tensor([[[0.6875, 0.3125]]]).expand(2, 1, 2))


def test_residual_alone_reads_the_token_itself() -> None:
    weights = torch.rand(5, 4, 9, 9).softmax(-1)
    start = torch.rand(5, 9)
    torch.testing.assert_close(rollout_tokens([weights] * 3, start, residual=1.0), start)
    share = rollout_tokens([weights] * 3, start / start.sum(1, keepdim=True))
    torch.testing.assert_close(share.sum(1), torch.ones(5))


# --- the weights are those that act ----------------------------------------------------------


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "additive"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_softmax_weights_reproduce_the_fused_call(mask: str, scale: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 5, generator=generator) for _ in range(3))
    visible = torch.rand(7, 7, generator=generator) < 0.6
    visible.fill_diagonal_(True)
    arguments: dict[str, object] = {
        "none": {},
        "causal": {"is_causal": True},
        "bool": {"attn_mask": visible},
        "additive": {"attn_mask": torch.randn(7, 7, generator=generator)},
    }[mask]  # type: ignore[assignment]
    weights = softmax_weights(query, key, value, scale=scale, **arguments)  # type: ignore[arg-type]
    expected = F.scaled_dot_product_attention(query, key, value, scale=scale, **arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(weights @ value, expected)


def test_grouped_queries() -> None:
    query, key, value = torch.randn(2, 6, 4, 5), torch.randn(2, 2, 4, 5), torch.randn(2, 2, 4, 5)
    weights = softmax_weights(query, key, value, enable_gqa=True)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    torch.testing.assert_close(weights @ value.repeat_interleave(3, dim=1), expected)


@pytest.mark.parametrize("fused", [True, False])
def test_timms_weights_are_those_of_its_own_softmax(fused: bool) -> None:
    torch.manual_seed(0)
    attention = timm.layers.Attention(
        12, num_heads=3, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm
    )
    attention.fused_attn = False
    attention.eval()
    seen: list[Tensor] = []
    attention.attn_drop.register_forward_hook(lambda _m, _a, out: seen.append(out))
    tokens = torch.randn(2, 5, 12)
    attention(tokens)
    attention.fused_attn = fused
    with torch.no_grad(), recorded_weights(attention) as weights:
        attention(tokens)
    assert attention.fused_attn is fused
    assert len(weights) == 1
    torch.testing.assert_close(weights[0], seen[0].mean(dim=1))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
def test_multihead_attention_returns_what_was_asked_for(
    batch_first: bool, need_weights: bool, average: bool
) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=batch_first).eval()
    tokens = torch.randn(2, 5, 12) if batch_first else torch.randn(5, 2, 12)
    asked = {"need_weights": need_weights, "average_attn_weights": average}
    with torch.no_grad():
        expected, expected_weights = attention(tokens, tokens, tokens, **asked)
        mean = attention(tokens, tokens, tokens)[1]
        with recorded_weights(attention) as recorded:
            output, weights = attention(tokens, tokens, tokens, **asked)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, expected_weights)
    torch.testing.assert_close(recorded, [mean])


def test_fast_paths_of_encoder_layers_are_opened() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(12, 3, 16, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    with torch.no_grad(), recorded_weights(encoder) as weights:
        encoder(torch.randn(2, 5, 12))
    assert [tuple(w.shape) for w in weights] == [(2, 5, 5)] * 2


def test_exposed_weights_count_once() -> None:
    class Both(nn.Module):
        exposes_attention = True

        def attention_weights(self, tokens: Tensor) -> Tensor:
            return softmax_weights(tokens[:, None], tokens[:, None], tokens[:, None])

        def forward(self, tokens: Tensor) -> Tensor:
            heads = tokens[:, None]
            return F.scaled_dot_product_attention(heads, heads, heads)[:, 0]

    model = Layers([Both(), Both()], class_token=False)
    with recorded_weights(model) as weights:
        model(torch.rand(2, 3, 2, 2))
    assert len(weights) == 2


# --- grids -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, size, prefix, expected",
    [
        (197, (224, 224), None, (1, (14, 14))),
        (198, (224, 224), None, (2, (14, 14))),
        (201, (224, 224), 5, (5, (14, 14))),
        (65, (8, 8), None, (1, (8, 8))),
        (64, (8, 8), None, (0, (8, 8))),
        (65, (32, 32), None, (1, (8, 8))),
        (97, (128, 192), None, (1, (8, 12))),
        (50, (224, 224), None, (1, (7, 7))),
    ],
)
def test_tokens_form_the_grid_of_square_patches(
    tokens: int, size: tuple[int, int], prefix: int | None, expected: tuple[int, tuple[int, int]]
) -> None:
    assert token_grid(tokens, size, prefix) == expected


@pytest.mark.parametrize("tokens, prefix", [(207, None), (197, 2), (12, None)])
def test_tokens_that_form_no_grid_are_refused(tokens: int, prefix: int | None) -> None:
    with pytest.raises(ModelError, match="square patches"):
        token_grid(tokens, (224, 224), prefix)


# --- whole networks --------------------------------------------------------------------------


def tiny_vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16
    ).eval()


def test_torchvisions_transformer_equals_rollout_of_its_own_weights() -> None:
    model = tiny_vision_transformer()
    inputs = torch.rand(3, 3, 32, 32)
    seen: list[Tensor] = []
    for block in model.encoder.layers:

        def reveal(module: nn.Module, args: tuple[Tensor, ...], _output: object) -> None:
            attention = module.self_attention
            tokens = module.ln_1(args[0])
            seen.append(attention(tokens, tokens, tokens, average_attn_weights=False)[1])

        block.register_forward_hook(reveal)
    with torch.no_grad():
        model(inputs)
    product = torch.eye(17).expand(3, 17, 17)
    for weights in seen:
        product = (0.5 * weights.mean(dim=1) + 0.5 * torch.eye(17)) @ product
    for block in model.encoder.layers:
        block._forward_hooks.clear()
    maps = rollout(model, inputs)
    torch.testing.assert_close(maps, product[:, 0, 1:].reshape(3, 4, 4))


@pytest.mark.parametrize(
    "arguments, grid",
    [
        ({}, (4, 4)),
        ({"img_size": (32, 64)}, (4, 8)),
        ({"class_token": False, "global_pool": "avg"}, (4, 4)),
        ({"class_token": False, "global_pool": "map"}, (4, 4)),
        ({"reg_tokens": 4}, (4, 4)),
        ({"class_token": False, "reg_tokens": 2, "global_pool": "avg"}, (4, 4)),
    ],
)
def test_timms_transformers_go_through(arguments: dict[str, object], grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    options = {"img_size": 32, **arguments}
    model = timm.models.vision_transformer.VisionTransformer(
        patch_size=8, depth=2, num_heads=2, embed_dim=16, num_classes=5, **options
    ).eval()
    size = options["img_size"]
    height, width = size if isinstance(size, tuple) else (size, size)
    maps = rollout(model, torch.rand(3, 3, height, width))
    assert maps.shape == (3, *grid)
    assert (maps > 0).all()
    assert (maps.flatten(1).sum(1) <= 1 + 1e-5).all()


def test_rollout_is_differentiable_and_otherwise_carries_no_graph() -> None:
    model = tiny_vision_transformer()
    inputs = torch.rand(2, 3, 32, 32)
    assert not rollout(model, inputs).requires_grad
    rollout(model, inputs, create_graph=True).square().sum().backward()
    weight = model.encoder.layers[0].self_attention.in_proj_weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0


def test_works_in_inference_mode() -> None:
    model = tiny_vision_transformer()
    inputs = torch.rand(2, 3, 32, 32)
    expected = rollout(model, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(rollout(model, inputs), expected)


def test_convolutional_network_has_no_rollout() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    with pytest.raises(ModelError, match="no attention weights"):
        rollout(model, torch.rand(1, 3, 8, 8))


def test_attention_that_is_not_global_is_refused() -> None:
    class Windows(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            windows = tokens.reshape(-1, 1, 8, tokens.shape[2])
            return F.scaled_dot_product_attention(windows, windows, windows).reshape(tokens.shape)

    with pytest.raises(ModelError, match="not global"):
        rollout(Layers([Windows(), Windows()], class_token=False), torch.rand(2, 3, 4, 4))


def test_rollout_has_no_layer() -> None:
    with pytest.raises(UsageError, match="all layers"):
        rollout(tiny_vision_transformer(), torch.rand(1, 3, 32, 32), layer="encoder")


def test_nothing_is_left_behind_after_an_error() -> None:
    class Failing(Exposing):
        def forward(self, tokens: Tensor) -> Tensor:
            raise RuntimeError("out of order")

    torch.manual_seed(0)
    attention = timm.layers.Attention(3, num_heads=1)
    attention.fused_attn = False
    model = Layers([attention, Failing(FIRST)], class_token=True).train()
    with pytest.raises(RuntimeError, match="out of order"):
        rollout(model, torch.rand(1, 3, 1, 2))
    assert attention.fused_attn is False
    assert model.training
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
