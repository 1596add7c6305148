"""Other forms of a model: lower precision, BatchNorm folded into convolutions, another layout.

The first convolution and the last linear layer stay in float32: the first sees perturbations of a
few grey levels that bfloat16's eight bits would round away, the last makes the logits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench.attacks.base import Gradient
from robench.attacks.losses import Loss
from robench.evaluation.search_models import EagerModel
from robench.models.wrapper import RobenchModel

__all__ = ["VARIANTS", "Variant", "build_variant"]


@dataclass(frozen=True)
class Variant:
    """One way to run the network."""

    name: str
    dtype: torch.dtype = torch.float32
    folded: bool = False
    channels_last: bool = False
    tf32: bool = False


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "tf32": (
        Variant("tf32", tf32=True),
        Variant("tf32 folded channels-last", folded=True, channels_last=True, tf32=True),
    ),
    "bf16": (
        Variant("bf16 folded", torch.bfloat16, folded=True),
        Variant("bf16 folded channels-last", torch.bfloat16, folded=True, channels_last=True),
    ),
    "fp16": (
        Variant("fp16 folded", torch.float16, folded=True),
        Variant("fp16 folded channels-last", torch.float16, folded=True, channels_last=True),
    ),
    "fp32 rearranged": (
        Variant("fp32 folded", folded=True),
        Variant("fp32 folded channels-last", folded=True, channels_last=True),
    ),
}


def build_variant(model: RobenchModel, variant: Variant) -> EagerModel | None:
    """The model in another form; None where it cannot take that form."""
    name = variant.name
    try:
        other = copy.deepcopy(model)
        if variant.folded and not _fold(other):
            name = name.replace(" folded", "")
            if name == "fp32":
                return None  # the model as it is
        if variant.dtype != torch.float32:
            _lower(other, variant.dtype)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        if variant.channels_last:
            other = other.to(memory_format=torch.channels_last)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # what cannot be copied, traced or cast is run as it is
    kind = _TF32Model if variant.tf32 else EagerModel
    return kind(other, name, memory_format=layout)


class _TF32Model(EagerModel):
    """Matrix products in TF32, switched on for its own passes only."""

    def logits(self, points: Tensor) -> Tensor:
        with _tf32():
            return super().logits(points)

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        with _tf32():
            return super().gradient(points, loss)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _fold(model: RobenchModel) -> bool:
    """Merge each BatchNorm into the convolution before it, where the network can be traced.

    Returns:
        Whether there was any, and the network traced.
    """
    from torch.fx import symbolic_trace  # imports much, used here alone
    from torch.fx.experimental.optimization import fuse

    network = model.network.eval()
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        return False
    # A network that cannot be traced is run unfolded; one that traces wrongly fails to agree.
    with contextlib.suppress(Exception):
        model.network = fuse(symbolic_trace(network, model.fixed_arguments()), no_trace=True)
        model.requires_grad_(False)
        return True
    return False


class _Cast(nn.Module):
    """A layer in float32 between others in lower precision."""

    def __init__(self, layer: nn.Module, output: torch.dtype) -> None:
        super().__init__()
        self.layer = layer
        self.output = output

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.layer(inputs.float())
        return result.to(self.output)


def _lower(model: RobenchModel, dtype: torch.dtype) -> None:
    """Cast the network, except its first convolution and its last linear layer."""
    network = model.network
    named = list(network.named_modules())
    first = next((name for name, m in named if isinstance(m, nn.Conv2d)), None)
    last = next((name for name, m in reversed(named) if isinstance(m, nn.Linear)), None)
    network.to(dtype)
    for name, output in ((first, dtype), (last, torch.float32)):
        if name is None:
            continue
        parent = network.get_submodule(name.rpartition(".")[0])
        layer = network.get_submodule(name).float()
        setattr(parent, name.rpartition(".")[2], _Cast(layer, output))
