"""ANCRA's networks with reverse attention (Zhou et al., arXiv 2310.03358).

In the last blocks the feature map z is pooled and classified by the network's own final layer;
z is then multiplied, channel by channel, by that layer's weight row of one class: the label's in
training, the predicted class's in evaluation. The choice is an argmax, so no gradient flows
through it.

All networks here share the calling convention of the authors: ``forward(inputs, y=None,
_eval=None)``. ``_eval=False`` masks by ``y``; anything else masks by the prediction. ``None``
returns the final logits alone, otherwise (final logits, [auxiliary logits, one per masked block]).
Unlike the authors', these networks do not switch themselves between training and evaluation.

For searches the choice may be made otherwise, by ``forward(inputs, mask=…)``: ``soft`` masks by the mean
of all rows, weighted with the auxiliary probabilities; ``own`` forces the mask to every class's row
in turn, and has each class's logits from under its own, at num_classes times the cost.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robench.errors import UsageError
from robench.models.architectures import Classifier
from robench.models.architectures.resnet import DigitsResNet, ResNet
from robench.models.architectures.wide_resnet import WideResNet
from robench.registry import unknown_name


def reverse_attention(
    maps: Tensor, fc: nn.Linear, labels: Tensor | None, soft: bool = False
) -> tuple[Tensor, Tensor]:
    """Mask a feature map by the classifier's weights of one class.

    Args:
        maps: feature map (N, C, h, w).
        fc: the final layer, weight (num_classes, C).
        labels: classes whose rows mask, (N,) int64; None: the predicted ones.
        soft: mask by the rows' mean, each as probable as its class; ``labels`` are not used.

    Returns:
        The masked map, and the auxiliary logits (N, num_classes) of the unmasked one.
    """
    logits: Tensor = fc(maps.mean(dim=(2, 3)))
    if soft:
        rows = logits.softmax(dim=1) @ fc.weight
    else:
        rows = fc.weight[logits.argmax(dim=1) if labels is None else labels]
    return maps * rows[:, :, None, None], logits


class _ReverseAttention(Classifier):
    """What the networks below share: the masked last blocks and the calling convention."""

    fc: nn.Linear
    alternatives: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "soft": {"mask": "soft"},
        "own": {"mask": "own"},
    }

    @abstractmethod
    def _before(self, inputs: Tensor) -> tuple[Tensor, Iterable[Callable[[Tensor], Tensor]]]:
        """What comes into the masked blocks, and these; their output is non-negative."""

    def forward_masked(
        self, inputs: Tensor, labels: Tensor | None = None, soft: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Inputs → (last map after its mask, auxiliary logits of every masked block)."""
        maps, masked = self._before(inputs)
        return self._through(maps, masked, labels, soft)

    def _through(
        self,
        maps: Tensor,
        masked: Iterable[Callable[[Tensor], Tensor]],
        labels: Tensor | None,
        soft: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        auxiliary = []
        for block in masked:
            maps, logits = reverse_attention(block(maps), self.fc, labels, soft)
            auxiliary.append(logits)
        return maps, auxiliary

    def _under_own_rows(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Final and auxiliary logits (N, K), class k's being those of a mask by k's row."""
        maps, masked = self._before(inputs)
        count, classes = len(maps), self.fc.out_features
        rows = torch.arange(classes, device=maps.device).repeat(count)
        last, auxiliary = self._through(maps.repeat_interleave(classes, dim=0), masked, rows)
        final, *own = (
            logits.view(count, classes, classes).diagonal(dim1=1, dim2=2)
            for logits in (self.forward_head(last), *auxiliary)
        )
        return final, own

    def forward_features(self, inputs: Tensor) -> Tensor:
        """(N, in_channels, H, W) → last map (N, C, h, w), masked by the prediction; any sign."""
        return self.forward_masked(inputs)[0]

    def forward(  # type: ignore[override]
        self,
        inputs: Tensor,
        y: Tensor | None = None,
        _eval: bool | None = None,
        mask: str = "predicted",
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """(N, in_channels, H, W) float → final logits, or (final logits, auxiliary logits).

        Args:
            inputs: images.
            y: labels (N,), needed for ``_eval=False`` only.
            _eval: False masks by ``y``; None returns the final logits alone.
            mask: unless ``y`` masks, ``predicted``, or one of ``alternatives``, for searches.

        Raises:
            UsageError: ``_eval=False`` without labels, or no such mask.
        """
        by_label = _eval is not None and not _eval
        if by_label and y is None:
            raise UsageError(
                "reverse attention needs labels in training", hint="Call it with y and _eval=False"
            )
        if mask not in ("predicted", *self.alternatives):
            raise unknown_name("mask", mask, ["predicted", *self.alternatives])
        if mask == "own" and not by_label:
            logits, auxiliary = self._under_own_rows(inputs)
        else:
            soft = mask == "soft" and not by_label
            maps, auxiliary = self.forward_masked(inputs, y if by_label else None, soft)
            logits = self.forward_head(maps)
        return logits if _eval is None else (logits, auxiliary)


class ResNetRA(_ReverseAttention, ResNet):
    """ResNet-18 with reverse attention in every block of ``layer4``; names as ANCRA's.

    Arguments and errors as :class:`ResNet`'s, whose head is ``fc`` here.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 64,
        stages: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__(num_classes, in_channels, width, stages, head="fc")

    def _before(self, inputs: Tensor) -> tuple[Tensor, Iterable[Callable[[Tensor], Tensor]]]:
        return self.trunk(inputs), self.layer4


class WideResNetRA(_ReverseAttention, WideResNet):
    """WideResNet with reverse attention in the last two blocks of ``block3``; names as ANCRA's.

    The final ``bn1`` and ReLU are applied in each of the two, before the auxiliary pooling.
    Arguments as :class:`WideResNet`'s, with the paper's depth and the authors' ``sub_block1``.

    Raises:
        UsageError: a depth other than 6n + 4 or below 16, or sizes below 1.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        depth: int = 34,
        widen_factor: int = 10,
        dropout: float = 0.0,
        stem: int = 16,
        sub_block: bool = True,
    ) -> None:
        super().__init__(num_classes, in_channels, depth, widen_factor, dropout, stem, sub_block)
        if depth < 16:
            raise UsageError(f"reverse attention masks two blocks: depth 16 or more, not {depth}")

    def _before(self, inputs: Tensor) -> tuple[Tensor, Iterable[Callable[[Tensor], Tensor]]]:
        maps = self.trunk(inputs)
        *first, second_last, last = self.block3.get_submodule("layer").children()
        for block in first:
            maps = block(maps)
        return maps, (self._finished(second_last), self._finished(last))

    def _finished(self, block: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda maps: torch.relu(self.bn1(block(maps)))


class DigitsResNetRA(_ReverseAttention, DigitsResNet):
    """The digits network with reverse attention in its last blocks: no down-sampling.

    Arguments as :class:`DigitsResNet`'s, and ``masked``: how many blocks, from the end, are masked.

    Raises:
        UsageError: sizes below 1, no masked block, or more than there are.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 32,
        blocks: int = 1,
        masked: int = 1,
    ) -> None:
        super().__init__(num_classes, in_channels, width, blocks)
        if not 1 <= masked <= blocks:
            raise UsageError(f"cannot mask {masked} of {blocks} blocks")
        self.masked = masked

    def _before(self, inputs: Tensor) -> tuple[Tensor, Iterable[Callable[[Tensor], Tensor]]]:
        maps = self.stem(inputs)
        blocks = list(self.blocks)
        for block in blocks[: -self.masked]:
            maps = block(maps)
        return maps, blocks[-self.masked :]
