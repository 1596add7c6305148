"""The one shape in which robench meets a network: inputs in [0, 1] → logits."""

from __future__ import annotations

import copy
import hashlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robench.errors import ModelError, UsageError, ended_process
from robench.models.library_code import is_installed
from robench.models.library_patches import is_others
from robench.models.object_parts import contents
from robench.probes import FirstState
from robench.records import (
    AttentionSpec,
    Flag,
    ForwardSpec,
    InputSpec,
    ModelSummary,
    OutputPath,
    PreprocessingSpec,
)
from robench.registry import near_misses, unknown_name


class RobenchModel(nn.Module):
    """A network together with everything that its card says about calling it.

    ``forward`` takes float inputs (N, channels, H, W) in [0, 1] and returns logits
    (N, num_classes) in whatever dtype the network yields. Range, normalisation and channel order
    are applied on the way in, and the logits are picked out of whatever the network returns.
    Where the card asks for none of it, nothing is added to the computation.

    The network is put in evaluation mode and its parameters are frozen; ``train()`` has no
    effect. It can be moved, copied and compiled like any module.

    Args:
        network: the bare network.
        num_classes: number of logits it must return.
        input_spec: range, mean/std and channel order that it expects.
        forward_spec: arguments of its ``forward`` and the paths to its outputs.
        attention: how to look at its attention and features.
        preprocessing: how images of other sizes are prepared for it; None: as their data set does.
        draws: of one verdict, where its outputs are random; None: not said.
        summary: what records and leaderboards say about it.
        remarks: what every record of it says beside that.
        identity: of the network as ``summary`` was made (see
            :func:`robench.models.code_identity.code_identity`); None: not known.
        fingerprint_by: the summary's fingerprint as it is with another identity of the network; None:
            the card alone decides it.
    """

    network: nn.Module
    _mean: Tensor | None
    _std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        summary: ModelSummary,
        input_spec: InputSpec | None = None,
        forward_spec: ForwardSpec | None = None,
        attention: AttentionSpec | None = None,
        preprocessing: PreprocessingSpec | None = None,
        draws: int | None = None,
        remarks: Sequence[Flag] = (),
        identity: str | None = None,
        fingerprint_by: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.summary = summary
        self.input_spec = input_spec or InputSpec()
        self.forward_spec = forward_spec or ForwardSpec()
        self.attention = attention or AttentionSpec()
        self.preprocessing = preprocessing
        self.draws = draws
        self.remarks = tuple(remarks)
        self.identity = identity
        self.fingerprint_by = fingerprint_by
        self.output_name: str | None = None
        self.first: FirstState | None = None
        """What the network's modules kept before it was asked anything, where that was looked at"""
        # Plain attributes, because torch.compile guards on them more cheaply than on pydantic's.
        self._arguments: dict[str, Any] = dict(self.forward_spec.arguments)
        self._path: OutputPath = self.forward_spec.output
        self._low = self.input_spec.low
        self._span = self.input_spec.high - self.input_spec.low
        self._flip = self.input_spec.channel_order == "BGR"
        # Not persistent: the state dict stays exactly the network's own.
        self.register_buffer("_mean", _per_channel(self.input_spec.mean, 0.0), persistent=False)
        self.register_buffer("_std", _per_channel(self.input_spec.std, 1.0), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the further outputs that :meth:`with_output` accepts."""
        return tuple(self.forward_spec.outputs)

    def with_output(self, name: str) -> RobenchModel:
        """The same network, sharing every parameter, returning another of its outputs.

        Raises:
            UsageError: the card names no such output.
        """
        if name not in self.forward_spec.outputs:
            close = near_misses(name, list(self.outputs))
            known = f"It has: {', '.join(self.outputs) or 'none but the final logits'}"
            hint = f"Did you mean {close[0]!r}?" if close else known
            raise UsageError(f"no output {name!r}", where=self.summary.id, hint=hint)
        other = copy.copy(self)
        other.output_name = name
        other._path = self.forward_spec.outputs[name]
        if self.forward_spec.outputs_arguments:
            other._arguments = dict(self.forward_spec.outputs_arguments)
        return other

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Names of the other ways through the network that :meth:`with_alternative` accepts."""
        return tuple(self._alternatives)

    def with_alternative(self, name: str) -> RobenchModel:
        """The same network, sharing every parameter, called in another way that it offers.

        Raises:
            UsageError: it offers no such way.
        """
        if name not in self.alternatives:
            raise unknown_name("alternative", name, list(self.alternatives))
        arguments = self._alternatives[name]
        spec = self.forward_spec
        further = {**(spec.outputs_arguments or spec.arguments), **arguments}
        other = copy.copy(self)
        other._arguments = {**self._arguments, **arguments}
        other.forward_spec = spec.model_copy(
            update={"arguments": {**spec.arguments, **arguments}, "outputs_arguments": further}
        )
        return other

    @property
    def _alternatives(self) -> Mapping[str, Mapping[str, Any]]:
        offered = getattr(self.network, "alternatives", None)
        return offered if isinstance(offered, Mapping) else {}

    def train(self, mode: bool = True) -> RobenchModel:
        """Stays in evaluation mode: batch statistics must never depend on the adversary."""
        return super().train(False)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Inputs in [0, 1], RGB → what the network expects, same shape and dtype."""
        prepared = inputs
        if self._flip:
            prepared = prepared.flip(1)
        if self._span != 1.0:
            prepared = prepared * self._span
        if self._low != 0.0:
            prepared = prepared + self._low
        if self._mean is not None:
            prepared = prepared - self._mean.to(inputs.dtype)
        if self._std is not None:
            prepared = prepared / self._std.to(inputs.dtype)
        return prepared

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, channels, H, W) float in [0, 1] → logits (N, num_classes).

        Raises:
            ModelError: what the network returns has no logits at the card's path, or of another
                shape, or complex ones.
        """
        return self._logits_in(self._call(inputs, self._arguments), self._path, len(inputs))

    def further_logits(self, inputs: Tensor) -> dict[str, Tensor]:
        """(N, channels, H, W) float in [0, 1] → logits (N, num_classes) of each further output.

        One pass for all of them.

        Raises:
            ModelError: as :meth:`forward`.
        """
        spec = self.forward_spec
        returned = self._call(inputs, spec.outputs_arguments or spec.arguments)
        return {
            name: self._logits_in(returned, path, len(inputs))
            for name, path in spec.outputs.items()
        }

    def _call(self, inputs: Tensor, arguments: Mapping[str, Any]) -> Any:
        """What the network returns, from inputs of its own: it may work in place on them, which torch
        refuses on those that gradients are for. What it makes torch's default type is so within."""
        prepared, default = self.prepare(inputs), torch.get_default_dtype()
        try:
            return self.network(inputs.clone() if prepared is inputs else prepared, **arguments)
        except SystemExit as end:
            raise ended_process(end.code) from end
        finally:
            if torch.get_default_dtype() != default:
                torch.set_default_dtype(default)

    def _logits_in(self, returned: Any, path: OutputPath, count: int) -> Tensor:
        """The logits at a path of what the network returned for so many inputs."""
        logits = _follow(returned, path, self.summary.id)
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"the network returns {_describe(logits)} where logits should be",
                where=self.summary.id,
                hint=_output_hint(logits, path, (count, self.num_classes)),
            )
        if logits.shape != (count, self.num_classes):
            raise ModelError(
                f"expected logits of shape ({count}, {self.num_classes}), "
                f"got {tuple(logits.shape)}",
                where=self.summary.id,
                hint="Check num_classes, and forward.output in the card, forward={'output': …} in "
                "Python or --forward output=…",
            )
        if logits.is_complex():
            raise ModelError(
                f"the network returns complex numbers ({logits.dtype}) where logits should be",
                where=self.summary.id,
                hint="Return real ones, such as their .real or .abs()",
            )
        return logits


def _per_channel(values: Sequence[float] | None, identity: float) -> Tensor | None:
    """(C,) or (1,) numbers → a (1, C, 1, 1) tensor; None where they would change nothing."""
    if values is None or all(value == identity for value in values):
        return None
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def _follow(returned: Any, path: OutputPath, where: str) -> Any:
    value = returned
    for step in path:
        parts = _named_parts(value)
        # Hugging Face's outputs answer to numbers too, and objects to attributes that they hide.
        try:
            # torch takes a name's letters for rows.
            if isinstance(value, Tensor) and isinstance(step, str):
                raise KeyError(step)
            value = parts[step] if step in parts else value[step]
        except (KeyError, IndexError, TypeError):
            # What a tensor has by name, such as `real` and `data`, is no output.
            if isinstance(step, str) and not isinstance(value, Tensor) and hasattr(value, step):
                value = getattr(value, step)
                continue
            raise ModelError(
                f"nothing at output path {list(path)}: the network returns {_describe(returned)}",
                where=where,
                hint="Correct forward.output in the card, forward={'output': …} in Python, or "
                "--forward output=…",
            ) from None
    return value


def _named_parts(value: Any) -> dict[Any, Any]:
    """What a network returned, by key, field, or place; nothing of a tensor."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "_asdict"):  # a named tuple
        return dict(value._asdict())
    if isinstance(value, (tuple, list)):
        return dict(enumerate(value))
    return {} if isinstance(value, Tensor) else dict(getattr(value, "__dict__", {}))


def _output_hint(returned: Any, path: OutputPath, shape: tuple[int, int]) -> str:
    """How to say where the logits are, with their place where there is only one."""
    parts = _named_parts(returned)
    fitting = [k for k, v in parts.items() if isinstance(v, Tensor) and v.shape == shape]
    steps = [*path, *(fitting if len(fitting) == 1 else list(parts)[:1] or [0])]
    typed = ",".join(map(str, steps))
    return (
        f"Say where they are: forward={{'output': {steps}}} in Python, --forward output={typed}, "
        f"or forward.output in the card"
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind, parts = type(value).__name__, _named_parts(value)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_asdict"):
        return f"a {kind} of {len(value)} ({', '.join(map(_describe, value[:4]))})"
    return f"a {kind} with {', '.join(map(repr, list(parts)[:6]))}" if parts else f"a {kind}"


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what ``torch.compile`` has made of another module."""
    return type(module).__module__.startswith("torch._dynamo")


def own_backend(module: nn.Module) -> Any:
    """The user's own function by which torch compiles a module, and which may compute anything; None:
    it is not compiled, or by a backend of torch's or of an installed package."""
    wrapper = getattr(vars(module).get("dynamo_ctx"), "callback", None)
    in_place = getattr(vars(module).get("_compiled_call_impl"), "__closure__", None)
    for held in (wrapper, *contents(in_place or ())):
        # Each holds the next: what catches errors, what converts frames, what torch.compile was given.
        while (inner := getattr(held, "_torchdynamo_orig_backend", None)) is not None:
            held = inner
        backend = getattr(held, "compiler_fn", None)
        code = getattr(backend, "__code__", None)
        if is_others(backend) and not (isinstance(code, types.CodeType) and is_installed(code)):
            return backend
    return None


def is_whole_in_a_copy(module: nn.Module) -> bool:
    """Whether a copy computes what the module does: not one of what torch compiles, with its hooks, or
    by a user's own backend."""
    return not is_compiled(module) and all(own_backend(m) is None for m in module.modules())


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that compilation (``torch.compile``) or data parallelism has wrapped.

    It computes the same, and lets its layers be looked at. A wrapper that has hooks, a ``forward`` of
    its own or a user's backend computes something else, and stays.
    """
    while not any(getattr(module, name, None) for name in _HOOKS):
        inner = getattr(module, "_orig_mod", None)
        if own_backend(module) is not None:
            break
        if is_compiled(module) and isinstance(inner, nn.Module):
            module = inner
        elif type(module) in (nn.DataParallel, nn.parallel.DistributedDataParallel):
            wrapped: Any = module.module
            module = wrapped
        else:
            break
    return module


def buffer_fingerprint(module: nn.Module) -> str:
    """SHA-256 over all parameters and buffers: names, dtypes, shapes and bytes.

    Two calls agree exactly if nothing was changed in between, on whatever device the module is;
    buffers that the state dict leaves out count too.
    """
    digest = hashlib.sha256()
    entries = [*module.named_parameters(), *module.named_buffers()]
    for name, tensor in sorted(entries, key=lambda entry: entry[0]):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        plain = tensor.detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()
