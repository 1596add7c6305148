"""The model with the gradients of soft choices where it makes hard ones.

An argmax that picks a row, a comparison that picks a branch, a rounding or a cast to whole numbers
passes no gradient, and what it decides is hidden from every search. Going back, the argmax is taken for a
softmax, the comparison for a sigmoid, the rounding for the identity (the straight-through estimator of
Bengio, Léonard & Courville, 2013; Athalye et al., "Obfuscated gradients", ICML 2018). Going forward
nothing changes, so outputs are the model's own. Widths follow from the values of each sample: a choice
that is nearly made otherwise and one that is far from it have slopes alike.

Calls are seen where the network's own code makes them (``torch.overrides``); what it does outside of
torch, or where it switches gradients off, is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from robench import seeding
from robench.acceleration.search_models import SearchModel
from robench.errors import AttackError, first_line
from robench.geometry import expand
from robench.stand_ins.base import Setting, StandIn

_LOOKED_AT = 8
"""Inputs that tell whether a model makes hard choices"""
_LEAST = 1e-12


class Softened(StandIn):
    """Builds the model whose hard choices have the gradients of soft ones."""

    exact = True

    def build(self, setting: Setting) -> SearchModel:
        """Looks which choices it makes.

        Raises:
            AttackError: it makes none that pass no gradient, or its passes fail.
        """
        seen: set[str] = set()
        inputs = setting.inputs[:_LOOKED_AT].clone().requires_grad_()
        try:
            with torch.enable_grad(), seeding.own_stream(setting.seed, inputs.device):
                SoftChoices(setting.model, seen)(inputs)
        except Exception as error:  # The network may raise anything.
            said = f"{type(error).__name__}: {first_line(error)}"
            raise AttackError(f"hard choices cannot be seen: {said}") from error
        if not seen:
            raise AttackError("the network's own code makes no hard choice to be softened")
        description = f"fp32, with soft gradients for {', '.join(sorted(seen))}"
        return SearchModel(SoftChoices(setting.model), description)


class SoftChoices(nn.Module):
    """A model whose hard choices have the gradients of soft ones.

    Args:
        model: inputs (N, C, H, W) in [0, 1] → logits (N, K).
        seen: the choices that were met are added to it.
    """

    def __init__(self, model: nn.Module, seen: set[str] | None = None) -> None:
        super().__init__()
        self.model = model
        self._seen = set[str]() if seen is None else seen

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's logits."""
        with _Softening(self._seen) if torch.is_grad_enabled() else nullcontext():
            logits: Tensor = self.model(inputs)
            return logits


class _Softening(TorchFunctionMode):
    """Calls inside have soft gradients.

    Whole numbers and truth values have no gradients. What they would be if they were smooth is kept
    beside them, until they come to numbers that have: ``smooth`` in their own shape, and of places,
    which an argmax gives, ``chosen``, probabilities in one more dimension.
    """

    def __init__(self, seen: set[str]) -> None:
        super().__init__()
        self.seen = seen
        self.smooth: Any = WeakTensorKeyDictionary()
        self.chosen: Any = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One call of torch: its own result, with a gradient where it has none."""
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "").strip("_")
        if name in _OUT_OF_TORCH:  # refused for tensors that have gradients
            return func(args[0].detach(), *args[1:], **given)
        out = func(*args, **given)
        rule = _RULES.get(name)
        if rule is None or not args or not torch.is_grad_enabled():
            return out
        return rule(self, out, func, args, given)

    def _keeps(self, value: Any) -> bool:
        return isinstance(value, Tensor) and (value in self.smooth or value in self.chosen)

    def _shape(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        """The same change of shape of what is kept."""
        first = args[0]
        if first in self.smooth:
            self.smooth[out] = func(self.smooth[first], *args[1:], **kwargs)
        if first in self.chosen:
            slices = self.chosen[first].unbind(-1)
            self.chosen[out] = torch.stack([func(p, *args[1:], **kwargs) for p in slices], dim=-1)
        return out

    def _getitem(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        first, place = args
        if isinstance(place, Tensor) and place in self.chosen:
            return self._picked(out, first, self.chosen[place])
        return self._shape(out, func, args, kwargs) if self._keeps(first) else out

    def _index_select(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        place = args[2] if len(args) > 2 else kwargs.get("index")
        known = isinstance(place, Tensor) and place in self.chosen and args[1] == 0
        return self._picked(out, args[0], self.chosen[place]) if known else out

    def _picked(self, out: Tensor, table: Tensor, probabilities: Tensor) -> Tensor:
        """Rows of a table that were chosen: their mean by the probabilities."""
        if len(table) != probabilities.shape[-1]:
            return out
        if table.is_floating_point():
            self.seen.add("argmax")
            mean = torch.tensordot(probabilities, table.detach().to(probabilities), dims=1)
            return _with(out, mean)
        if table.dim() == 1 and table.dtype == torch.int64 and bool((table >= 0).all()):
            self.chosen[out] = probabilities @ functional.one_hot(table).to(probabilities)
        return out

    def _gather(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if len(args) < 3 or args[2] not in self.chosen or args[2].shape[args[1]] != 1:
            return out
        table = args[0].movedim(args[1], -1)
        probabilities = self.chosen[args[2]].squeeze(args[1])
        if table.shape != probabilities.shape or not table.is_floating_point():
            return out
        self.seen.add("argmax")
        return _with(out, (probabilities * table.detach()).sum(-1).unsqueeze(args[1]))

    def _argmax(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        scores = args[0]
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        keep = args[2] if len(args) > 2 else kwargs.get("keepdim", False)
        places = out if isinstance(out, Tensor) else getattr(out, "indices", None)
        if isinstance(dim, int) and isinstance(places, Tensor) and _has_slope(scores):
            lowest = func.__name__ in ("min", "argmin")
            probabilities = _probabilities((-scores if lowest else scores).movedim(dim, -1))
            where = dim % scores.dim()
            self.chosen[places] = probabilities.unsqueeze(where) if keep else probabilities
        return out

    def _one_hot(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if args[0] in self.chosen:
            self.seen.add("argmax")
            probabilities = self.chosen[args[0]]
            missing = out.shape[-1] - probabilities.shape[-1]
            self.smooth[out] = functional.pad(probabilities, (0, missing))
        return out

    def _comparison(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.__name__.strip("_")
        one, other = (self.smooth.get(v, v) if isinstance(v, Tensor) else v for v in args[:2])
        if name in ("eq", "ne"):
            if isinstance(args[0], Tensor) and args[0] in self.chosen and isinstance(other, int):
                equal = self.chosen[args[0]][..., other]
                self.smooth[out] = equal if name == "eq" else 1 - equal
        elif _has_slope(one) or _has_slope(other):
            self.smooth[out] = _step(one - other if name in ("gt", "ge") else other - one)
        return out

    def _logic(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if not any(isinstance(part, Tensor) and part in self.smooth for part in args):
            return out
        parts = [self.smooth[v] if v in self.smooth else v.float() for v in args[:2]]
        name = func.__name__.strip("_").removeprefix("logical_").removeprefix("bitwise_")
        if name in ("not", "invert"):
            self.smooth[out] = 1 - parts[0]
        else:
            one, other = parts
            self.smooth[out] = one * other if name == "and" else 1 - (1 - one) * (1 - other)
        return out

    def _where(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if len(args) != 3:
            return out
        condition, yes, no = args if args[0].dtype == torch.bool else (args[1], args[0], args[2])
        if condition not in self.smooth or not out.is_floating_point():
            return out
        self.seen.add("comparisons")
        yes, no = (v.detach() if isinstance(v, Tensor) else v for v in (yes, no))
        return _with(out, (self.smooth[condition] * (yes - no)).expand_as(out))

    def _cast(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        first = args[0]
        if first in self.chosen:
            self.chosen[out] = self.chosen[first]
        if first in self.smooth:
            if out.is_floating_point():
                self.seen.add("whole numbers and truth values")
                return _with(out, self.smooth[first])
            self.smooth[out] = self.smooth[first]
        elif _has_slope(first) and not out.is_floating_point():
            self.smooth[out] = first
        return out

    def _rounding(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if not _has_slope(args[0]):
            return out
        self.seen.add(func.__name__)
        return _with(out, 2 * _step(args[0]) if "sign" in func.__name__ else args[0])

    def _detach(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        if not _has_slope(args[0]):
            return out
        self.seen.add("detach")
        return _with(out, args[0])

    def _sums(self, out: Any, func: Any, args: Any, kwargs: Any) -> Any:
        """Of whole numbers and truth values, as of what they would be."""
        met = False

        def smooth(value: Any) -> Any:
            nonlocal met
            if isinstance(value, list | tuple):
                return type(value)(map(smooth, value))
            if isinstance(value, Tensor) and value in self.smooth:
                met = True
                return self.smooth[value]
            return value

        changed = smooth(tuple(args))
        if met:
            total = func(*changed, **kwargs)
            if not out.is_floating_point():
                self.smooth[out] = total
            elif total.shape == out.shape:
                self.seen.add("whole numbers and truth values")
                return _with(out, total)
        return out


_OUT_OF_TORCH = {"numpy", "array"}
_SUMS = {
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "div",
    "truediv",
    "sum",
    "mean",
    "stack",
    "cat",
}
_RULES: dict[str, Callable[[_Softening, Any, Any, Any, Any], Any]] = {
    **dict.fromkeys(("reshape", "view", "unsqueeze", "squeeze", "expand"), _Softening._shape),
    **dict.fromkeys(("flatten", "permute", "transpose", "expand_as"), _Softening._shape),
    **dict.fromkeys(("argmax", "argmin", "max", "min"), _Softening._argmax),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne"), _Softening._comparison),
    **dict.fromkeys(("and", "or", "invert"), _Softening._logic),
    **dict.fromkeys(("logical_and", "logical_or", "logical_not"), _Softening._logic),
    **dict.fromkeys(("to", "float", "double", "half", "type", "type_as"), _Softening._cast),
    **dict.fromkeys(("long", "int", "byte", "short", "cpu"), _Softening._cast),
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "fix", "sign"), _Softening._rounding),
    **dict.fromkeys(_SUMS, _Softening._sums),
    "getitem": _Softening._getitem,
    "index_select": _Softening._index_select,
    "gather": _Softening._gather,
    "one_hot": _Softening._one_hot,
    "where": _Softening._where,
    "detach": _Softening._detach,
}


def _has_slope(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _with(value: Tensor, smooth: Tensor) -> Tensor:
    """The value, to the last digit, with the gradient of something smooth beside its own."""
    return value + (smooth - smooth.detach()).to(value.dtype)


def _step(difference: Tensor) -> Tensor:
    """From 0 to 1 where the difference grows past 0, as wide as it is large in a sample's mean."""
    size = difference.detach().abs()
    width = size.flatten(1).mean(dim=1) if size.dim() > 1 else size
    return torch.sigmoid(difference / expand(width, difference).clamp_min(_LEAST))


def _probabilities(scores: Tensor) -> Tensor:
    """Of scores (…, K), which may be the largest: as wide as the lead, or a quarter of the spread."""
    if scores.shape[-1] < 2:
        return torch.ones_like(scores)
    top = scores.detach().topk(2, dim=-1).values
    spread = scores.detach().std(dim=-1)
    width = torch.maximum(top[..., 0] - top[..., 1], spread / 4).clamp_min(_LEAST)
    return (scores / width.unsqueeze(-1)).softmax(dim=-1)
