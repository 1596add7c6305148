"""Other forms of a model: lower precision, BatchNorm folded, another layout, other kernels.

The first convolution and the last linear layer stay in float32: the first sees perturbations of a
few grey levels that bfloat16's eight bits would round away, the last makes the logits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robench.acceleration.search_models import EagerModel
from robench.attacks.base import Gradient
from robench.attacks.losses import Loss
from robench.models.wrapper import RobenchModel

__all__ = ["VARIANTS", "Variant", "build_variant", "fold_batch_norm", "put_layer"]


_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Variant:
    """One way to run the network."""

    dtype: torch.dtype = torch.float32
    folded: bool = False
    channels_last: bool = False
    tf32: bool = False
    onednn: bool = False
    """Linear layers through oneDNN, which need not be the library that PyTorch takes on a CPU"""
    unfused_attention: bool = False
    """Attention as two products and a softmax; on a CPU the gradient of PyTorch's fused kernel is
    slower for few tokens"""

    @property
    def precision(self) -> str:
        """Of most of its layers."""
        return "tf32" if self.tf32 else _DTYPES[self.dtype]

    @property
    def name(self) -> str:
        """As records and benchmarks say it: ``bf16 folded channels-last``."""
        words = [self.precision]
        words += ["folded"] if self.folded else []
        words += ["channels-last"] if self.channels_last else []
        words += ["onednn"] if self.onednn else []
        words += ["unfused-attention"] if self.unfused_attention else []
        return " ".join(words)


_AS_IT_IS = Variant()

VARIANTS: dict[str, tuple[Variant, ...]] = {
    "tf32": (Variant(tf32=True), Variant(folded=True, channels_last=True, tf32=True)),
    "bf16": (
        Variant(torch.bfloat16, folded=True),
        Variant(torch.bfloat16, folded=True, channels_last=True),
    ),
    "fp16": (
        Variant(torch.float16, folded=True),
        Variant(torch.float16, folded=True, channels_last=True),
    ),
    "fp32 rearranged": (
        Variant(folded=True),
        Variant(folded=True, channels_last=True),
        Variant(folded=True, onednn=True),
        Variant(folded=True, onednn=True, unfused_attention=True),
    ),
}


def build_variant(model: RobenchModel, variant: Variant) -> EagerModel | None:
    """The model in another form; None where it cannot take that form, or it is no other.

    What has nothing to fold, or cannot be traced, takes the rest of the form.
    """
    try:
        other = copy.deepcopy(model)
        if variant.folded and not fold_batch_norm(other):
            variant = replace(variant, folded=False)
        if variant == _AS_IT_IS or (variant.onednn and not _use_onednn(other)):
            return None
        if variant.dtype != torch.float32:
            _lower(other, variant.dtype)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        if variant.channels_last:
            other = other.to(memory_format=torch.channels_last)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # what cannot be copied or cast is run as it is
    setting = _tf32 if variant.tf32 else _unfused_attention if variant.unfused_attention else None
    if setting is None:
        return EagerModel(other, variant.name, memory_format=layout, precision=variant.precision)
    return _ModelWithSetting(setting, other, variant.name, layout, variant.precision)


class _ModelWithSetting(EagerModel):
    """A model under a setting of PyTorch's, switched on for its own passes only."""

    def __init__(
        self,
        setting: Callable[[], contextlib.AbstractContextManager[None]],
        module: nn.Module,
        description: str,
        memory_format: torch.memory_format,
        precision: str,
    ) -> None:
        super().__init__(module, description, memory_format=memory_format, precision=precision)
        self.setting = setting

    def logits(self, points: Tensor) -> Tensor:
        with self.setting():
            return super().logits(points)

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        with self.setting():
            return super().gradient(points, loss)

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        with self.setting():
            return super().jacobian(points)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextlib.contextmanager
def _unfused_attention() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def fold_batch_norm(model: RobenchModel) -> bool:
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


class _Product(torch.autograd.Function):
    """A linear layer by oneDNN, differentiable in its inputs only."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, turned: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.turned = turned
        return _by_onednn(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        return _by_onednn(slopes[0], ctx.turned, None), None, None, None


def _by_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operator that torch.compile emits for linear layers; PyTorch has no public name for it.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        inputs.contiguous(), weight, bias, "none", [], ""
    )
    return product


class _OneDNNLinear(nn.Module):
    """Takes the place of a linear layer whose parameters are fixed."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.turned = layer.weight.detach().T.contiguous()

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in) float32 → (…, out)."""
        product: Tensor = _Product.apply(inputs, self.weight, self.turned, self.bias)
        return product


def _use_onednn(model: RobenchModel) -> bool:
    """Multiply by oneDNN in every linear layer, on a CPU.

    PyTorch may multiply float32 matrices by another library, such as MKL, that is slower on the
    processor at hand; convolutions go through oneDNN anyway.

    Returns:
        Whether there is more than the one linear layer that makes the logits.
    """
    layers = [(n, m) for n, m in model.network.named_modules() if type(m) is nn.Linear]
    if len(layers) < 2 or any(m.weight.device.type != "cpu" for _, m in layers):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    model.requires_grad_(False)
    for name, layer in layers:
        put_layer(model.network, name, _OneDNNLinear(layer))
    return True


def put_layer(network: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of that name."""
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, layer)


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
        put_layer(network, name, _Cast(network.get_submodule(name).float(), output))
