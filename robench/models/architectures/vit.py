"""A small vision transformer whose attention can be read (Dosovitskiy et al. 2021, 2010.11929).

Parameter names are timm's: ``patch_embed.proj, cls_token, pos_embed,
blocks.N.{norm1,attn.qkv,attn.proj,norm2,mlp.fc1,mlp.fc2}, norm, head``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robench.errors import ModelError, UsageError
from robench.models.architectures import Classifier


class _Attention(nn.Module):
    """Multi-head self-attention that can also say what it attended to."""

    exposes_attention = True

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def _split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, t, width = tokens.shape
        qkv = self.qkv(tokens).view(n, t, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def attention_weights(self, tokens: Tensor) -> Tensor:
        """(N, T, width) → softmax weights (N, heads, T, T); each row sums to 1."""
        query, key, _ = self._split(tokens)
        return torch.softmax(query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5, dim=-1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, width) → (N, T, width), by the fused kernel."""
        query, key, value = self._split(tokens)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class VisionTransformer(Classifier):
    """Pre-norm transformer over square patches.

    The default is for 8×8 inputs: 16 patches of 2×2, two layers, 39,514 parameters.

    Args:
        num_classes: number of logits.
        in_channels: channels of the input.
        image_size: height and width of the input, one number for a square.
        patch: side of a patch; it divides the image's sides.
        width: size of a token.
        depth: number of layers.
        heads: attention heads; they divide the width.
        mlp_ratio: hidden size of the perceptron as a multiple of the width.
        pool: ``mean`` of the patch tokens, or a ``class`` token of its own.

    Raises:
        UsageError: sizes that do not divide, or are below 1.
    """

    classifier = "head"

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int | Sequence[int] = 8,
        patch: int = 2,
        width: int = 48,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        pool: Literal["mean", "class"] = "mean",
    ) -> None:
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if min(num_classes, in_channels, patch, width, depth, heads, *size) < 1:
            raise UsageError("the sizes of a transformer must be at least 1")
        if len(size) != 2 or size[0] % patch or size[1] % patch:
            raise UsageError(f"patches of side {patch} do not tile an image of {size}")
        if width % heads:
            raise UsageError(f"{heads} heads do not divide a width of {width}")
        if pool not in ("mean", "class"):
            raise UsageError(f"pool is 'mean' or 'class', not {pool!r}")
        self.image_size = size
        self.has_class_token = pool == "class"
        self.num_prefix_tokens = int(self.has_class_token)
        self.patch_embed = nn.Sequential(
            OrderedDict(proj=nn.Conv2d(in_channels, width, patch, patch))
        )
        tokens = (size[0] // patch) * (size[1] // patch) + self.num_prefix_tokens
        self.cls_token: nn.Parameter | None = None
        if self.has_class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        hidden = max(1, round(width * mlp_ratio))
        self.blocks = nn.Sequential(*(_Layer(width, heads, hidden) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → normalised tokens (N, T, width), class token first if any.

        Raises:
            ModelError: another image size; the position embedding has a fixed one.
        """
        if tuple(inputs.shape[2:]) != self.image_size:
            raise ModelError(
                f"the transformer takes images of {self.image_size}, got {tuple(inputs.shape[2:])}",
                hint="Set image_size in the architecture's arguments",
            )
        tokens = self.patch_embed(inputs).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        normalised: Tensor = self.norm(self.blocks(tokens + self.pos_embed))
        return normalised

    def pool(self, features: Tensor) -> Tensor:
        """Tokens (N, T, width) → (N, width)."""
        return features[:, 0] if self.has_class_token else features.mean(dim=1)
