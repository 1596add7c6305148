"""What users hand over as a model: a module, which is copied; what is none is refused in one line."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from torch import Tensor, nn

from robench.errors import UsageError, one_line
from robench.models.wrapper import is_whole_in_a_copy
from robench.models.zoo import LocatedCard

_SHARED: Final = (
    "pass robench.models.wrap_module(module, num_classes=…, name=…, share=True), which freezes the "
    "module itself, with its input and forward"
)


def copied(module: nn.Module, name: str) -> nn.Module:
    """A copy of a module, with all that is on it.

    Raises:
        UsageError: there is none.
    """
    if not is_whole_in_a_copy(module):
        raise UsageError(
            "a copy of a compiled module loses the hooks on it, and a backend of your own",
            where=name,
            hint=f"Put hooks on the module that is compiled, and pass it as it was before, or {_SHARED}",
        )
    try:
        return copy.deepcopy(module)
    except Exception as error:  # A module's own code may raise anything.
        raise UsageError(
            f"the module cannot be copied: {one_line(error)}", where=name, hint=f"Then {_SHARED}"
        ) from error


def check_models(models: Iterable[Any]) -> None:
    """Refuse what is neither a module, a card nor a name, without showing what it holds.

    Raises:
        UsageError: says what it is, and what to pass.
    """
    for model in models:
        if not isinstance(model, (str, os.PathLike, nn.Module, LocatedCard)):
            what, hint = _kind(model)
            raise UsageError(f"{what} is no model", hint=hint)


def _kind(model: Any) -> tuple[str, str]:
    """What it is, and what to pass in its place."""
    kind = type(model).__name__
    owner = getattr(model, "__self__", None)
    if model is None:
        return "None", "Pass an nn.Module, a model's name, or a card's path"
    if isinstance(model, type):
        network = f"Pass a network: {model.__name__}()"
        return f"the class {model.__name__}", network if issubclass(model, nn.Module) else _MODULE
    if isinstance(owner, nn.Module) and inspect.ismethod(model):
        return (
            f"the method {model.__name__} of {type(owner).__name__}",
            "Pass the module itself" + ("" if model.__name__ in _CALLED else f"; {_WRITTEN}"),
        )
    if isinstance(model, Mapping):
        state = bool(model) and all(isinstance(value, Tensor) for value in model.values())
        what = "a state dict" if state else f"a dictionary ({kind})"
        return what, "Build its network, call load_state_dict and pass the network"
    if isinstance(model, (list, tuple, set, frozenset)):
        return (
            f"a {kind} of {len(model)}",
            "Pass one model; several go into robench.Request(models=[…])",
        )
    if callable(model):
        named = getattr(model, "__name__", kind).strip("<>")
        return f"the function {named}" if hasattr(model, "__name__") else f"{kind}", _MODULE
    return f"what is of type {kind}", "Pass an nn.Module, a model's name, or a card's path"


_CALLED: Final = ("forward", "__call__")
_WRITTEN: Final = "of another method write an nn.Module whose forward calls it"
_MODULE: Final = "Pass an nn.Module, such as one whose forward calls it"
