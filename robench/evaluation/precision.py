"""How the search runs its passes: precision, layout and folding, chosen by a short measurement.

Nothing here can change a verdict: every candidate is judged in float32 by the original model.
What can change is how fast candidates are found. On the actual model and device each variant is
built, its logits are compared with the original's, and its passes are timed; the fastest forward
and the fastest forward-and-backward that agree are taken, which need not be the same.

The first convolution and the last linear layer stay in float32: the first sees perturbations of a
few grey levels that bfloat16's eight bits would round away, the last makes the logits.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robench import seeding
from robench.attacks.base import Gradient
from robench.attacks.losses import LOSSES, Loss, margin
from robench.errors import UsageError
from robench.evaluation.passes import SearchModel, is_out_of_memory
from robench.evaluation.search_models import EagerModel
from robench.geometry import project, random_point, steepest
from robench.models.wrapper import RobenchModel
from robench.registry import unknown_name
from robench.threat_models import ThreatModel

__all__ = ["PRECISIONS", "choose_search_model"]

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")

_WORTH_MEASURING = 200_000
"""Planned passes below which a measurement would cost more than it saves"""
_MAX_DISAGREEMENT = 0.05
"""Largest allowed error of a margin, as a share of the median margin"""
_TIMING_SECONDS = 0.15
_PILOT = 32
"""Inputs that tell whether a model falls at once"""
_BATCHES = {"cpu": (128, 256, 512), "cuda": (256, 512, 1024, 2048), "mps": (128, 256)}


@dataclass(frozen=True)
class Variant:
    """One way to run the network."""

    name: str
    dtype: torch.dtype = torch.float32
    folded: bool = False
    channels_last: bool = False
    tf32: bool = False


_FP32 = Variant("fp32")

_VARIANTS: dict[str, tuple[Variant, ...]] = {
    "fp32": (_FP32,),
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

_AUTO = {
    "cpu": ("fp32", "fp32 rearranged", "bf16"),
    "cuda": ("fp32", "fp32 rearranged", "tf32", "bf16", "fp16"),
    "mps": ("fp32", "fp32 rearranged", "fp16"),
}


class MixedModel:
    """Forward passes through one variant, gradients through another."""

    def __init__(self, forward: EagerModel, backward: EagerModel) -> None:
        self.forward = forward
        self.backward = backward
        self.tolerance = max(forward.tolerance, backward.tolerance)
        self.description = (
            forward.description
            if forward.description == backward.description
            else f"{forward.description} forward, {backward.description} backward"
        )

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        return self.forward.logits(points)

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """One forward and one backward pass."""
        return self.backward.gradient(points, loss)

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the gradients of each."""
        return self.backward.jacobian(points)


def choose_search_model(
    model: RobenchModel,
    inputs: Tensor,
    labels: Tensor,
    *,
    precision: str,
    threat_model: ThreatModel,
    batch_size: int | None = None,
    planned_passes: float,
) -> tuple[SearchModel, int]:
    """Choose what searches run on, and how many inputs at a time.

    Args:
        model: the original, on its device.
        inputs: (N, C, H, W), a sample of the data, on the device.
        labels: int64 (N,).
        precision: ``auto``, or one of :data:`PRECISIONS` to have it whatever is faster.
        threat_model: the ball in which agreement is checked.
        batch_size: the user's; None: measured.
        planned_passes: how many passes are to come; few do not pay for a measurement.

    Raises:
        UnknownNameError: no such precision.
        UsageError: the precision that was asked for does not agree with the original.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, list(PRECISIONS))
    device = inputs.device.type
    default = batch_size or _BATCHES.get(device, (256,))[1]
    plain = EagerModel(model)
    if precision == "fp32":
        return plain, default
    if precision == "auto":
        # Nothing is gained on models that fall at once, whatever the budget.
        if planned_passes >= _WORTH_MEASURING:
            planned_passes *= _surviving_share(plain, inputs, labels, threat_model)
        if planned_passes < _WORTH_MEASURING:
            return plain, default
    kinds = _AUTO.get(device, ("fp32",)) if precision == "auto" else (precision,)
    variants = [variant for kind in kinds for variant in _VARIANTS[kind]]
    points = _points(inputs, threat_model)
    built = [plain] if precision == "auto" else []
    for variant in variants:
        if variant == _FP32:
            continue
        candidate = _build(model, variant)
        if candidate is not None and _agrees(candidate, plain, points, labels):
            built.append(candidate)
    if not built:
        raise UsageError(
            f"in {precision} the logits do not agree with the original model's",
            where=model.summary.id,
            hint="Use --precision auto or fp32",
        )
    batch = _tiled(points, default)
    classes = _tiled(labels, default)
    forward = max(built, key=lambda candidate: _rate(lambda: candidate.logits(batch)))
    loss = Loss(LOSSES["ce"], classes, classes)
    backward = max(built, key=lambda candidate: _rate(lambda: candidate.gradient(batch, loss)))
    return MixedModel(forward, backward), default


def _surviving_share(
    plain: EagerModel, inputs: Tensor, labels: Tensor, threat_model: ThreatModel
) -> float:
    """Share of a few inputs that four gradient steps leave correctly classified."""
    clean, classes = inputs[:_PILOT], labels[:_PILOT]
    loss = Loss(LOSSES["ce"], classes, classes)
    points = clean
    for _ in range(4):
        slope = plain.gradient(points, loss).gradient
        ahead = points + threat_model.radius / 2 * steepest(slope, threat_model.norm)
        points = project(ahead, clean, threat_model.norm, threat_model.radius)
    return float((margin(plain.logits(points), classes) > 0).double().mean())


def _points(inputs: Tensor, threat_model: ThreatModel) -> Tensor:
    """Where agreement is checked: clean inputs moved to random points of the ball."""
    keys = seeding.sample_keys(0, [str(i) for i in range(len(inputs))]).to(inputs.device)
    return random_point(inputs, threat_model.norm, threat_model.radius, keys)


def _tiled(tensor: Tensor, count: int) -> Tensor:
    repeats = -(-count // len(tensor))
    return tensor.repeat(repeats, *([1] * (tensor.dim() - 1)))[:count]


def _build(model: RobenchModel, variant: Variant) -> EagerModel | None:
    """The model in another form; None where it cannot take that form."""
    try:
        other = copy.deepcopy(model)
        if variant.folded:
            _fold(other)
        if variant.dtype != torch.float32:
            _lower(other, variant.dtype)
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        if variant.channels_last:
            other = other.to(memory_format=torch.channels_last)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None  # what cannot be copied, traced or cast is run as it is
    kind = _TF32Model if variant.tf32 else EagerModel
    return kind(other, variant.name, memory_format=layout)


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


def _fold(model: RobenchModel) -> None:
    """Merge each BatchNorm into the convolution before it, where the network can be traced."""
    from torch.fx.experimental.optimization import fuse  # imports torch.fx, used here alone

    # A network that cannot be traced is run unfolded; one that traces wrongly fails to agree.
    with contextlib.suppress(Exception):
        model.network = fuse(model.network.eval())
        model.requires_grad_(False)


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


def _agrees(candidate: EagerModel, plain: EagerModel, points: Tensor, labels: Tensor) -> bool:
    """Whether margins agree; sets the candidate's tolerance to twice the largest error seen."""
    try:
        expected = margin(plain.logits(points), labels)
        error = (margin(candidate.logits(points), labels) - expected).abs().max()
        loss = Loss(LOSSES["ce"], labels, labels)
        finite = bool(candidate.gradient(points, loss).gradient.isfinite().all())
    except Exception:
        # An operation that does not exist in this precision, or a network that looks into layers
        # that were replaced: whatever it is, the variant is not one to use.
        return False
    limit = _MAX_DISAGREEMENT * float(expected.abs().median())
    candidate.tolerance = 2 * float(error)
    return finite and float(error) <= limit


def _rate(call: Callable[[], object]) -> float:
    """Calls a second, 0 where it does not fit into memory."""
    try:
        call()
        _synchronise()
        times: list[float] = []
        started = time.perf_counter()
        while time.perf_counter() - started < _TIMING_SECONDS or len(times) < 3:
            before = time.perf_counter()
            call()
            _synchronise()
            times.append(time.perf_counter() - before)
    except RuntimeError as error:
        if is_out_of_memory(error):
            return 0.0
        raise
    return 1 / min(times)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
