"""Opens a transformer's attention: the softmax weights of every layer in a forward pass.

Fused kernels never form the weights, and modules rarely return them. Instead of rewriting
modules, the pass runs under a torch-function mode that sees the calls by which attention is
computed, whatever library they come from.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robench.errors import ModelError
from robench.probes import at_least_float32, forward_hooks


@contextmanager
def recorded_weights(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the attention weights of the passes inside, averaged over heads, in calling order.

    Three kinds of attention are seen:

    - calls of ``F.scaled_dot_product_attention``. Modules that can choose between the fused call
      and their own softmax (timm's ``fused_attn``) use the former inside;
    - ``nn.MultiheadAttention``, which computes its weights explicitly inside;
    - modules with a true attribute ``exposes_attention`` and a method ``attention_weights`` that
      takes what ``forward`` takes and returns (N, heads, T, T); they count in place of anything
      that they call.

    Yields:
        A list that fills up with (N, T, S) tensors.
    """
    recorder = _Recorder()
    fusible = [m for m in model.modules() if isinstance(getattr(m, "fused_attn", None), bool)]
    chosen = [module.fused_attn for module in fusible]
    exposing = [m for m in model.modules() if getattr(m, "exposes_attention", False) is True]
    try:
        for module in fusible:
            module.fused_attn = True  # type: ignore[assignment]
        with forward_hooks(exposing, before=recorder.enter, after=recorder.leave), recorder:
            yield recorder.weights
    finally:
        for module, fused in zip(fusible, chosen, strict=True):
            module.fused_attn = fused


def softmax_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The weights that ``F.scaled_dot_product_attention`` applies, before dropout.

    Arguments are those of the call, ``query`` (..., heads, L, E) and ``key`` (..., heads, S, E);
    ``value`` and ``dropout_p`` are not used.

    Returns:
        (..., heads, L, S), at least float32; rows sum to 1.
    """
    query, key = at_least_float32(query), at_least_float32(key)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = factor * (query @ key.transpose(-2, -1))
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(dim=-1)


class _Recorder(TorchFunctionMode):
    """Sees every torch call of a pass and keeps the weights of those that are attention."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []
        self._depth = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if self._depth == 0 and func is F.scaled_dot_product_attention:
            self._keep(softmax_weights(*args, **named))
        elif self._depth == 0 and func is F.multi_head_attention_forward:
            return self._explicitly(func, args, named)
        return func(*args, **named)

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of a module that exposes its weights; what it calls inside does not count."""
        self._depth += 1
        if self._depth == 1:
            expose: Any = module.attention_weights
            self._keep(expose(*args, **kwargs))

    def leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Hook at the end of such a module."""
        self._depth -= 1

    def _explicitly(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """``nn.MultiheadAttention``'s computation, with weights, returning what was asked for."""
        wanted = kwargs.get("need_weights", True)
        averaged = kwargs.get("average_attn_weights", True)
        opened = {**kwargs, "need_weights": True, "average_attn_weights": False}
        output, weights = func(*args, **opened)
        self._keep(weights if weights.ndim == 4 else weights[None])
        if not wanted:
            return output, None
        return output, weights.mean(dim=-3) if averaged else weights

    def _keep(self, weights: Tensor) -> None:
        if weights.ndim < 3:
            raise ModelError(
                f"attention weights have shape {tuple(weights.shape)}",
                hint="attention_weights(x) returns (N, heads, T, T)",
            )
        # Heads are averaged at once: a layer's (N, heads, T, T) need not outlive it.
        self.weights.append(at_least_float32(weights).mean(dim=-3))
