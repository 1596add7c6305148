"""Forms of one network: batch norms folded, channels last, lower precision.

A network is deep-copied first; the original is never changed. In lower precision the first
convolution and the last linear layer stay in float32: the first sees perturbations that bfloat16
would round away, the last makes the logits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robench.acceleration.search_models import EagerModel
from robench.models.wrapper import RobenchModel

__all__ = ["FOLDED", "LOWER", "Variant", "build_variant"]

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Variant:
    """One way to run the network."""

    dtype: torch.dtype = torch.float32
    folded: bool = False
    channels_last: bool = False
    tf32: bool = False

    @property
    def name(self) -> str:
        """As records and benchmarks say it: ``bf16 folded channels-last``."""
        words = ["tf32" if self.tf32 else _DTYPES[self.dtype]]
        words += ["folded"] if self.folded else []
        words += ["channels-last"] if self.channels_last else []
        return " ".join(words)


FOLDED = Variant(folded=True)
"""Differs from the original by float32 rounding only"""
LOWER = {
    "tf32": Variant(folded=True, channels_last=True, tf32=True),
    "bf16": Variant(torch.bfloat16, folded=True, channels_last=True),
    "fp16": Variant(torch.float16, folded=True, channels_last=True),
}
"""By precision; the units that multiply in it take channels last"""


def build_variant(model: RobenchModel, variant: Variant) -> EagerModel | None:
    """The model in another form; None where it cannot take that form, or it is no other.

    What has nothing to fold, or cannot be traced, takes the rest of the form.
    """
    try:
        other = copy.deepcopy(model)
        if variant.folded and not _fold_batch_norm(other):
            variant = replace(variant, folded=False)
        if variant == Variant():
            return None
        if variant.dtype != torch.float32:
            _lower(other, variant.dtype)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        if variant.channels_last:
            other = other.to(memory_format=torch.channels_last)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # what cannot be copied or cast is run as it is
    setting = _tf32 if variant.tf32 else contextlib.nullcontext
    return EagerModel(other, variant.name, memory_format=layout, setting=setting)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _fold_batch_norm(model: RobenchModel) -> bool:
    """Merge each BatchNorm into the convolution before it, where the network can be traced.

    Returns:
        Whether there was any, and the network traced.
    """
    network = model.network.eval()
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if not any(isinstance(part, kinds) for part in network.modules()):
        return False
    # A network that cannot be traced is run unfolded, as is any where torch has moved or dropped
    # what is experimental in it; one that traces wrongly fails to agree.
    with contextlib.suppress(Exception):
        from torch.fx import symbolic_trace  # imports much, used here alone
        from torch.fx.experimental.optimization import fuse

        traced = symbolic_trace(_Called(network, model.forward_spec.arguments))
        model.network = fuse(traced, no_trace=True)
        model.requires_grad_(False)
        return True
    return False


class _Called(nn.Module):
    """A network with its further arguments filled in, so that a trace has none left to guess."""

    def __init__(self, network: nn.Module, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.arguments = dict(arguments)

    def forward(self, inputs: Tensor, **_: Any) -> Any:
        """What the network returns; whoever calls the trace passes the arguments as before."""
        return self.network(inputs, **self.arguments)


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
        parent, _, own = name.rpartition(".")
        layer = _Cast(network.get_submodule(name).float(), output)
        setattr(network.get_submodule(parent), own, layer)
