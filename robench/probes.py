"""Look inside a forward pass and leave no trace.

What attention maps and features have in common: finding a layer by name, hooking modules for the
length of one pass, and leaving parameters, buffers and training flags as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import ModelError, UsageError, first_line
from robench.registry import unknown_name

_WRAPPED = "network"
"""Attribute under which a wrapper keeps the network whose layer names people know."""


def layer_names(model: nn.Module) -> dict[str, nn.Module]:
    """Submodules of ``model`` by the names that records use.

    Names are relative to the wrapped network where ``model`` is a wrapper (has a submodule
    ``network``), unless that would make two layers share a name. A module that is reachable in
    several ways appears once.
    """
    outer = dict(model.named_modules())
    names: dict[str, nn.Module] = {}
    for full, module in outer.items():
        if full in ("", _WRAPPED):
            continue
        inner = full.removeprefix(f"{_WRAPPED}.")
        names[full if inner != full and inner in outer else inner] = module
    return names


def resolve_layer(model: nn.Module, name: str) -> tuple[str, nn.Module]:
    """The submodule called ``name`` and the name that records use for it.

    ``name`` is looked up in ``model`` first, then in the network that it wraps.

    Raises:
        UnknownNameError: no such layer; near misses are listed.
    """
    known, modules = layer_names(model), dict(model.named_modules(remove_duplicate=False))
    for full in (name, f"{_WRAPPED}.{name}") if name else ():
        if full in modules:
            module = modules[full]
            return next((n for n, m in known.items() if m is module), name), module
    raise unknown_name("layer", name, list(known))


@contextmanager
def _training_flags_kept(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; each submodule's own flag comes back, also after an error."""
    with _training_flags_kept(model):
        model.eval()
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Restore training flags and buffers of ``model`` on leaving, also after an error.

    Passes inside work on copies of the buffers. The originals are put back rather than
    overwritten, so that a graph built inside stays valid for a later backward pass.
    """
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    copies: dict[int, Tensor] = {}
    with _training_flags_kept(model):
        try:
            for module, name, buffer in buffers:
                # A buffer that two modules share must stay shared during the pass.
                copy = copies.setdefault(id(buffer), buffer.clone())
                setattr(module, name, copy)
            yield
        finally:
            for module, name, buffer in buffers:
                setattr(module, name, buffer)


@contextmanager
def forward_hooks(
    modules: Sequence[nn.Module],
    *,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Forward hooks on ``modules`` that are gone on leaving, also after an error.

    Args:
        before: forward pre-hook ``(module, args, kwargs)``.
        after: forward hook ``(module, args, output)``; a value it returns replaces the output.

    Raises:
        ModelError: a module takes no hooks, as those of TorchScript files.
    """
    with ExitStack() as stack:
        for module in modules:
            try:
                if before is not None:
                    handle = module.register_forward_pre_hook(before, with_kwargs=True)
                    stack.callback(handle.remove)
                if after is not None:
                    stack.callback(module.register_forward_hook(after).remove)
            except RuntimeError as error:
                raise ModelError(
                    f"{type(module).__name__} lets nobody look at its layers: {error}"
                ) from error
        yield


@contextmanager
def precision_named(model: nn.Module) -> Iterator[None]:
    """Say so where a pass inside fails and the network is not in float32, as its inputs are.

    Raises:
        ModelError: in place of torch's error.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        tensors = [*model.parameters(), *model.buffers()]
        others = {t.dtype for t in tensors if t.is_floating_point()} - {torch.float32}
        if not others:
            raise
        raise ModelError(
            f"the network is in {' and '.join(sorted(map(str, others)))} and fails on float32 "
            f"inputs: {first_line(error)}",
            hint="Convert it with .float(), or wrap it in a module that casts inputs and logits",
        ) from error


def checked_inputs(inputs: Tensor) -> Tensor:
    """A copy of ``inputs`` if they are a floating-point NCHW batch: a network may work in place on it.

    Raises:
        UsageError: another shape or type.
    """
    if inputs.ndim != 4 or not inputs.is_floating_point():
        raise UsageError(
            f"inputs have shape {tuple(inputs.shape)} and type {inputs.dtype}",
            hint="Give a floating-point batch (N, C, H, W) in [0, 1]",
        )
    return inputs.clone()


def at_least_float32(values: Tensor) -> Tensor:
    """``values``, in float32 where they are in half precision: sums of many would be lost there."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def checked_logits(logits: object, n: int) -> Tensor:
    """``logits`` if they are a tensor (N, C) with ``n`` rows.

    Raises:
        ModelError: anything else.
    """
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"the model returned {type(logits).__name__}, not logits",
            hint="Name the output's place in the card (forward.output)",
        )
    if logits.ndim != 2 or logits.shape[0] != n or logits.shape[1] < 1:
        raise ModelError(
            f"the model returned shape {tuple(logits.shape)} for {n} inputs",
            hint="Logits have shape (N, C)",
        )
    return logits


def pulled_back(slope: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor | None:
    """The gradient for ``inputs`` of what has the gradient ``slope`` for ``outputs``, both of one
    shape and dtype; None if the outputs do not depend on the inputs.

    What ``torch.autograd.grad(outputs, inputs, slope)`` gives, to the bit; but torch imports sympy
    for that, which takes half a second.
    """
    with torch.enable_grad():
        weighted = (outputs * slope).sum()
    (gradient,) = torch.autograd.grad(weighted, inputs, allow_unused=True)
    return gradient


_OF_TORCH = frozenset(vars(nn.Module()))
_CONSTANT = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class FirstState:
    """What a network's modules keep beside their parameters: buffers, and attributes of their own."""

    attributes: dict[str, dict[str, Any]]
    """By the module's name and the attribute's"""
    buffers: dict[str, dict[str, Tensor | None]]

    @classmethod
    def of(cls, model: nn.Module) -> FirstState | None:
        """As they are now; None: something cannot be copied."""
        modules, memo = dict(model.named_modules()), _shared(model)
        try:
            attributes = {name: copy.deepcopy(_own(m), memo) for name, m in modules.items()}
        except Exception:  # Foreign objects may raise anything.
            return None
        return cls(
            attributes,
            {
                name: {key: None if b is None else b.clone() for key, b in m._buffers.items()}
                for name, m in modules.items()
            },
        )

    def restore(self, model: nn.Module) -> None:
        """Have the modules of ``model``, or of a copy of it, keep this again."""
        memo = _shared(model)
        for name, module in model.named_modules():
            if name not in self.attributes:
                continue
            kept, now = self.attributes[name], _own(module)
            for key in now.keys() - kept.keys():
                del module.__dict__[key]
            for key, value in kept.items():
                if not (isinstance(value, _CONSTANT) and now.get(key) is value):
                    module.__dict__[key] = copy.deepcopy(value, memo)
            for key, buffer in self.buffers[name].items():
                here = module._buffers.get(key)
                if buffer is not None and here is not None and not _equal(here, buffer):
                    module._buffers[key] = buffer.to(here).clone()


def _own(module: nn.Module) -> dict[str, Any]:
    """What is not torch's."""
    return {key: value for key, value in vars(module).items() if key not in _OF_TORCH}


def _shared(model: nn.Module) -> dict[int, Any]:
    """What copies of attributes share: parameters, and modules, which are named by themselves."""
    return {id(part): part for part in (*model.parameters(), *model.modules())}


def _equal(here: Tensor, kept: Tensor) -> bool:
    return here.shape == kept.shape and torch.equal(here, kept.to(here))
