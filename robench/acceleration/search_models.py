"""The model as searches see it: the original, or a form of it that is faster.

A form has batch norms folded, channels last or lower precision. The network is deep-copied first;
the original is never changed. In lower precision the first convolution and the last linear layer
stay in float32: the first sees perturbations that bfloat16 would round away, the last makes the
logits.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robench.attacks.base import AttackKind, Gradient
from robench.attacks.losses import Loss, logit_difference
from robench.geometry import norm_of
from robench.models.wrapper import RobenchModel
from robench.probes import pulled_back
from robench.threat_models import Norm

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(eq=False)
class SearchModel:
    """A module as searches see it: any precision inside, float32 logits and gradients outside."""

    module: nn.Module
    """(B, C, H, W) float32 → logits (B, K)"""
    description: str = "fp32"
    """Precision and layout, for the record"""
    tolerance: float = 0.0
    """How far a margin may be from the original model's, in logits; 0 for the model itself"""
    memory_format: torch.memory_format = torch.contiguous_format
    """Of the inputs"""
    setting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Makes what its passes, and nothing else, run under"""
    own_logits: bool = True
    """Whether the logits are those of the model under attack, up to the tolerance; margins of others
    say nothing certain about it, so that every step of a search has to be judged"""
    passes: int = 1
    """Passes forward and backward that one gradient takes"""
    logit_passes: int = 1
    """Passes forward that logits alone take"""

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        with self.setting(), torch.no_grad():
            logits: Tensor = self.module(points.to(memory_format=self.memory_format))
        return logits.float()

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """One forward and one backward pass; the loss and its slope are computed in float32."""
        with self.setting():
            leaf, logits = self._forward(points)
            losses, slope = loss(logits.detach().float())
            gradient = None
            if logits.requires_grad:  # otherwise the output does not depend on the input
                gradient = pulled_back(slope.to(logits.dtype), logits, leaf)
        gradient = torch.zeros_like(points) if gradient is None else gradient
        return Gradient(
            logits.detach().float(),
            losses,
            gradient.to(memory_format=torch.contiguous_format),
        )

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and their gradients (B, K, C, H, W): one forward, K backward passes."""
        slopes = []
        with self.setting():
            leaf, logits = self._forward(points)
            for index in range(logits.shape[1]):
                with torch.enable_grad():
                    total = logits[:, index].sum()
                (slope,) = torch.autograd.grad(total, leaf, retain_graph=True)
                slopes.append(slope.to(memory_format=torch.contiguous_format))
        return logits.detach().float(), torch.stack(slopes, dim=1)

    def steepness(
        self, points: Tensor, rivals: Tensor, labels: Tensor, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and norms (B, M) of the slopes of rivals' logits over the labels'.

        ``rivals`` int64 (B, M), ``labels`` int64 (B,): one forward, M backward passes.
        """
        norms = []
        with self.setting():
            leaf, logits = self._forward(points)
            for rival in rivals.T:
                _, difference = logit_difference(logits.detach(), labels, rival)
                slope = None
                if logits.requires_grad:
                    (slope,) = torch.autograd.grad(
                        logits, leaf, difference, retain_graph=True, allow_unused=True
                    )
                slope = torch.zeros_like(points) if slope is None else slope
                norms.append(norm_of(slope, norm))
        return logits.detach().float(), torch.stack(norms, dim=1)

    def _forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs that gradients are for, and their logits."""
        with torch.enable_grad():
            leaf = points.detach().to(memory_format=self.memory_format).requires_grad_()
            return leaf, self.module(leaf)


@dataclass(frozen=True)
class SearchModels:
    """What the searches of one model run on, by the kind of attack."""

    search: SearchModel
    """For attacks by gradients"""
    queries: SearchModel
    """For attacks that ask for logits only"""
    boundary: SearchModel
    """For attacks that walk along the decision boundary, which low precision moves"""
    exact: SearchModel
    """Differs from the original by float32 rounding only"""

    @classmethod
    def all_on(cls, model: SearchModel) -> SearchModels:
        """One for everything."""
        return cls(model, model, model, model)

    def different(self) -> list[SearchModel]:
        """Each of them once."""
        return list(dict.fromkeys((self.search, self.queries, self.boundary, self.exact)))

    def for_attack(self, kind: AttackKind) -> SearchModel:
        """What an attack of that kind runs on, far from the boundary."""
        return {"gradient": self.search, "boundary": self.boundary, "query": self.queries}[kind]


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


_SMALL_CPUS = ("DEFAULT", "NO AVX", "AVX2")
"""Those without AVX-512"""


def is_small_cpu(device: torch.device) -> bool:
    """Whether convolutions are faster channels last there, and bfloat16 many times slower.

    Measured for processors with AVX2 in ``benchmarks/results/forms_digits.md``.
    """
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in _SMALL_CPUS


def exact_variant(device: torch.device) -> Variant:
    """The form for a device that differs from the original by float32 rounding only."""
    return Variant(folded=True, channels_last=is_small_cpu(device))


LOWER = {
    "tf32": Variant(folded=True, channels_last=True, tf32=True),
    "bf16": Variant(torch.bfloat16, folded=True, channels_last=True),
    "fp16": Variant(torch.float16, folded=True, channels_last=True),
}
"""By precision; the units that multiply in it take channels last"""


def build_variant(model: RobenchModel, variant: Variant) -> SearchModel | None:
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
    setting = _tf32 if variant.tf32 else nullcontext
    return SearchModel(other, variant.name, memory_format=layout, setting=setting)


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
