"""Compiled forms of a search model: tried where a search is long, kept where they are faster.

A form is compiled for one batch size and one kind of pass. Batches that are nearly full are
filled up with copies of their last input; the others go to the eager form. So nothing is ever
compiled during a search, whatever sizes its batches have. On CUDA the compiled form is a captured
graph, whose outputs the next call overwrites: they are copied before they are handed out.

Compiling needs what not every machine has (a C++ compiler, Triton, a Python that torch supports)
and takes time that only long searches pay back. Whatever fails, the eager form goes on.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robench.attacks.base import Gradient
from robench.attacks.losses import LOSSES, Loss, margin
from robench.evaluation.search_models import EagerModel
from robench.evaluation.timing import gain, tiled

__all__ = ["Check", "CompiledModel", "Kind", "compile_whole", "compiling_pays", "try_compiled"]

Kind = Literal["logits", "gradient"]
"""What a form is for: forward passes, or forward and backward passes"""
Compile = Callable[[nn.Module, torch.device], Callable[[Tensor], Tensor]]

_LIKELY_GAIN: dict[str, dict[Kind, float]] = {
    "cpu": {"logits": 0.05, "gradient": 0.01},
    "cuda": {"logits": 0.2, "gradient": 0.2},
}
"""Share of a pass's time that compiling saves, cautiously guessed; elsewhere it is not tried.

On a CPU from benchmarks/results/compiled.md: in bfloat16 forward passes of batches that are a
sixteenth short gain a fifth on a small transformer, a twentieth on a ResNet-18 and nothing on a
small one; gradients gain nothing worth a mention. So it takes a search of the better part of an
hour to try one, of several hours to try the other. On CUDA small networks wait for kernels to be
launched, which a captured graph spares; those figures were not measured.
"""
_SECONDS = 20.0
"""What compiling one form takes at least: importing the compiler, tracing, C++ or Triton"""
_SECONDS_A_LAYER = 0.5
"""Between what processors need for it and what it takes on a machine shared with others"""
_CALLS = 12
"""Of full batches, to check and to time"""
_SHARE = 0.5
"""Of the planned passes that are of one kind: PGD has gradients only, of AutoAttack's
6,900 steps with ten classes 5,000 are forward passes"""
_CLEARLY = 2.0
"""How many times the cost the expected saving must be, as both are guesses"""
_WORTH_KEEPING = 1.1
"""Least gain of a full batch: those of a search are a sixteenth less than full on average"""
_FULL_ENOUGH = 3 / 4
"""Least share of the batch size that is filled up, however large the gain"""
_LEAST_SIMILARITY = 0.98
"""Median cosine between the gradients of both forms; rounding alone can turn some of them"""
_FORMS = 64
"""Compiled forms of one function that torch keeps; models in one process share theirs"""


@dataclass(frozen=True)
class Check:
    """What a form has to agree with."""

    points: Tensor
    """(N, C, H, W), any number of them"""
    labels: Tensor
    """int64 (N,)"""
    expected: Tensor
    """(N,) margins of the original model"""
    limit: float
    """Largest allowed error of a margin, in logits"""


class CompiledModel:
    """One kind of pass through a compiled form, where batches are full enough.

    Args:
        eager: the form for everything else.
        run: (size, C, H, W) → (size, K), the compiled form of the eager form's module.
        kind: which passes ``run`` was compiled for.
        size: inputs that ``run`` takes, no fewer and no more.
        least: batches of fewer inputs go to the eager form.
    """

    def __init__(
        self,
        eager: EagerModel,
        run: Callable[[Tensor], Tensor],
        kind: Kind,
        size: int,
        least: int,
    ) -> None:
        self.eager = eager
        self.kind = kind
        self.size = size
        self.least = least
        self.failed = False
        self.tolerance = eager.tolerance
        self.description = f"{eager.description} compiled"
        # Of the same class, so that whatever it does around a pass is done around this one.
        self._whole = copy.copy(eager)
        self._whole.module = _Run(run)

    def logits(self, points: Tensor) -> Tensor:
        """(B, C, H, W) → float32 (B, K)."""
        if self.kind != "logits" or not self._takes(points):
            return self.eager.logits(points)
        rows = self._rows(points)
        with self._noticing_failure(), _never_compiling(points.device):
            return self._whole.logits(points[rows])[: len(points)].clone()
        return self.eager.logits(points)

    def gradient(self, points: Tensor, loss: Loss) -> Gradient:
        """One forward and one backward pass."""
        if self.kind != "gradient" or not self._takes(points):
            return self.eager.gradient(points, loss)
        rows = self._rows(points)
        with self._noticing_failure(), _never_compiling(points.device):
            seen = self._whole.gradient(points[rows], loss.at(rows))
            return Gradient(*(part[: len(points)].clone() for part in seen))
        return self.eager.gradient(points, loss)

    def jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and the gradients of each, never compiled."""
        return self.eager.jacobian(points)

    def compile(self, points: Tensor, loss: Loss) -> None:
        """The first passes on a full batch: they compile, or fail as compilers do."""
        # On CUDA the first warms up, the second captures the graph, the third is as all others.
        for _ in range(3 if points.is_cuda else 1):
            if self.kind == "logits":
                self._whole.logits(points)
            else:
                self._whole.gradient(points, loss)

    @contextlib.contextmanager
    def _noticing_failure(self) -> Iterator[None]:
        """Whatever the compiled form raises, the eager one is asked, then and ever after.

        Where the inputs are at fault, it raises as well.
        """
        try:
            yield
        except Exception:
            self.failed = True

    def _takes(self, points: Tensor) -> bool:
        return not self.failed and self.least <= len(points) <= self.size

    def _rows(self, points: Tensor) -> Tensor:
        """int64 (size,): all rows, then the last one again and again."""
        return torch.arange(self.size, device=points.device).clamp_max(len(points) - 1)


class _Run(nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, points: Tensor) -> Tensor:
        return self.run(points)


def compiling_pays(
    module: nn.Module,
    kind: Kind,
    device: torch.device,
    *,
    passes: float,
    rate: float,
    batch_size: int,
) -> bool:
    """Whether a compiled form is likely to save clearly more time than it costs.

    Args:
        module: what would be compiled.
        kind: for which passes.
        device: where.
        passes: inputs that are to go through the model, in passes of either kind.
        rate: how many of them the eager form takes a second.
        batch_size: inputs of one call.
    """
    expected = _SHARE * passes / rate
    layers = sum(1 for part in module.modules() if not list(part.children()))
    cost = _SECONDS + _SECONDS_A_LAYER * layers + _CALLS * batch_size / rate
    likely = _LIKELY_GAIN.get(device.type, {}).get(kind, 0.0)
    return expected * likely > _CLEARLY * cost


def try_compiled(
    eager: EagerModel, kind: Kind, size: int, check: Check, compile_form: Compile | None = None
) -> EagerModel | CompiledModel:
    """Compile one form for batches of ``size``; the eager one where that fails or is no faster.

    The compiled form's tolerance is twice the largest error of a margin that was seen, as for any
    other form, and no less than that of the eager one, which small batches go to.

    Args:
        eager: the form that is chosen so far.
        kind: which passes to compile it for.
        size: the search's batch size.
        check: what margins have to agree with.
        compile_form: a module and its device → the function to call in its place; None: torch's
            compiler, with a captured graph on CUDA.
    """
    points, labels = tiled(check.points, size), tiled(check.labels, size)
    loss = Loss(LOSSES["ce"], labels, labels)
    try:
        compiled = compile_whole(eager, kind, points, loss, compile_form)
        error = _disagreement(compiled, points, loss, tiled(check.expected, size))
        if compiled.failed or not error <= check.limit:
            return eager
        faster = gain(_call(eager, kind, points, loss), _call(compiled, kind, points, loss))
    except Exception:
        # No compiler, none that works, a network that cannot be traced: whatever it is, the
        # search can do without.
        return eager
    if faster < _WORTH_KEEPING:
        return eager
    compiled.tolerance = max(eager.tolerance, 2 * error)
    # An eager pass takes time by its inputs, a compiled one always that of a full batch.
    compiled.least = math.ceil(size * max(_FULL_ENOUGH, 1 / faster))
    return compiled


def compile_whole(
    eager: EagerModel,
    kind: Kind,
    points: Tensor,
    loss: Loss,
    compile_form: Compile | None = None,
) -> CompiledModel:
    """The compiled form of one kind of pass, for batches of as many inputs as ``points``.

    Whatever the compiler raises is not caught here. It fills up every smaller batch.
    """
    with _quietly(), _settings(kind, points.device):
        run = (compile_form or _torch_compile)(eager.module, points.device)
        compiled = CompiledModel(eager, run, kind, len(points), least=1)
        compiled.compile(points, loss)
    return compiled


def _disagreement(compiled: CompiledModel, points: Tensor, loss: Loss, expected: Tensor) -> float:
    """Largest error of a margin; NaN or infinite where the form is of no use at all."""
    if compiled.kind == "logits":
        logits = compiled.logits(points)
    else:
        mine, theirs = compiled.gradient(points, loss), compiled.eager.gradient(points, loss)
        similarity = torch.nn.functional.cosine_similarity(
            mine.gradient.flatten(1), theirs.gradient.flatten(1)
        )
        # Where nothing is left of a gradient there is no direction to agree on.
        similarity = similarity[theirs.gradient.flatten(1).norm(dim=1) > 0]
        if len(similarity) and not float(similarity.median()) >= _LEAST_SIMILARITY:
            return math.inf
        logits = mine.logits
    return float((margin(logits, loss.labels) - expected).abs().max())


def _call(
    model: EagerModel | CompiledModel, kind: Kind, points: Tensor, loss: Loss
) -> Callable[[], object]:
    if kind == "logits":
        return lambda: model.logits(points)
    return lambda: model.gradient(points, loss)


def _torch_compile(module: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    mode = "reduce-overhead" if device.type == "cuda" else None
    compiled: Callable[[Tensor], Tensor] = torch.compile(module, dynamic=False, mode=mode)
    return compiled


@contextlib.contextmanager
def _settings(kind: Kind, device: torch.device) -> Iterator[None]:
    """The compiler's own settings, for as long as one form is compiled."""
    import torch._dynamo.config as tracing  # imports sympy and more, of use here alone
    import torch._inductor.config as compiling

    limit = "recompile_limit" if hasattr(tracing, "recompile_limit") else "cache_size_limit"
    # Weights as constants can be packed beforehand and merged with what follows a convolution.
    frozen = kind == "logits" and device.type == "cpu"
    with tracing.patch({limit: _FORMS}), compiling.patch(compile_threads=1, freezing=frozen):
        yield


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the compiler's warnings and log lines, about which nobody can do anything."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _never_compiling(device: torch.device) -> Iterator[None]:
    """Run what is compiled; what is not, for whatever reason, eagerly."""
    if device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    with torch.compiler.set_stance("eager_on_recompile"):
        yield
