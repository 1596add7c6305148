"""A pass through a network, cut into segments by what goes into its modules and comes out of them.

A segment is the code between two such places: a module without modules of its own, or what the
``forward`` of another does with its input and its modules' outputs before the next of them is
called. So what a network does outside of modules is seen as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robench.models.wrapper import RobenchModel
from robench.probes import forward_hooks, layer_names


@dataclass
class Source:
    """A tensor that a segment may start from."""

    name: str
    flowing: Tensor
    """What the network computes with"""
    value: Tensor
    """The same for whoever looks on, who may have put a leaf of his own in its place"""


@dataclass
class Frame:
    """The call of a module."""

    name: str
    module: nn.Module
    call: Callable[[Tensor], Any]
    """The module's forward with another first tensor"""
    sources: list[Source] = field(default_factory=list)
    children: int = 0
    """Modules that it has called"""
    had_grad: bool = True

    def starts_alone(self) -> bool:
        """Whether the segment that ends here starts from this call's only tensor, nowhere else."""
        return self.children == 0 and len(self.sources) == 1

    @property
    def is_trusted(self) -> bool:
        """Whether its own code is torch's, or robench's, whose derivatives are those of what it does."""
        kind = type(self.module)
        own = "forward" in vars(self.module)
        return not own and (
            kind.__module__.startswith("torch.nn.") or issubclass(kind, RobenchModel)
        )


@dataclass(frozen=True)
class Place:
    """Where a segment ends."""

    name: str
    index: int
    """Which of the tensors there"""
    is_output: bool


Visit = Callable[[Place, Tensor, Frame], "tuple[Tensor, Tensor]"]
"""(place, tensor, the call whose code made it) → what goes on in the tensor's place, and what a
:class:`Source` keeps of it"""


class _ReachedError(Exception):
    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors


class Passes:
    """Has passes through a model visited at every place where a segment ends.

    With ``lifts`` modules compute with gradients also where the network has switched them off.
    """

    def __init__(self, model: nn.Module, lifts: bool = False) -> None:
        self.lifts = lifts
        names = {module: name for name, module in layer_names(model).items()}
        self._names = {m: names.get(m, "the network") for m in model.modules()}
        self._names[model] = "the model"
        self._visit: Visit | None = None
        self._stopping = False
        self.without_grad: list[tuple[str, str]] = []
        """What was called where the network had switched gradients off, and what called it"""

    @contextmanager
    def visited(self, visit: Visit) -> Iterator[None]:
        """Passes inside are visited."""
        before = torch.is_grad_enabled()
        self._visit, self._stack, self._calls = visit, list[Frame](), Counter[str]()
        self.without_grad = []
        try:
            with forward_hooks(list(self._names), before=self._enter, after=self._leave):
                yield
        finally:
            self._visit = None
            torch.set_grad_enabled(before)

    def again(self, frame: Frame, place: Place, first: Tensor) -> Tensor:
        """What reaches ``place`` when the call's first tensor is another (:meth:`Frame.starts_alone`)."""
        visit, self._visit, self._stopping = self._visit, None, not place.is_output
        try:
            with torch.no_grad():
                tensors = _tensors(frame.call(first))
        except _ReachedError as reached:
            tensors = reached.tensors
        finally:
            self._visit, self._stopping = visit, False
        return tensors[place.index]

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        visit = self._visit
        if visit is None:
            if self._stopping:
                raise _ReachedError(_tensors((args, kwargs)))
            return None
        if not self._stack:
            self._calls.clear()
        name = self._names[module]
        self._calls[name] += 1
        if self._calls[name] > 1:
            name = f"{name} (call {self._calls[name]})"
        parent = self._stack[-1] if self._stack else None
        sources: list[Source] = []

        def enter(index: int, tensor: Tensor) -> Tensor:
            flowing = value = tensor
            if parent is not None:
                flowing, value = visit(Place(name, index, False), tensor, parent)
            sources.append(Source(f"input {index} of {name}", flowing, value))
            return flowing

        args, kwargs = _mapped((args, kwargs), enter)

        def call(first: Tensor) -> Any:
            changed, named = _mapped((args, kwargs), lambda i, tensor: tensor if i else first)
            return module.forward(*changed, **named)

        if not sources and parent is not None:
            sources = list(parent.sources)  # of whole numbers, that its caller made of something
        if parent is not None:
            parent.children += 1
        frame = Frame(name, module, call, sources, had_grad=torch.is_grad_enabled())
        self._stack.append(frame)
        if self._stack[0].had_grad and not frame.had_grad and parent is not None:
            self.without_grad.append((name, parent.name))
        if self._stack[0].had_grad and self.lifts:
            torch.set_grad_enabled(True)
        return args, kwargs

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        visit = self._visit
        if visit is None:
            return None
        frame = self._stack.pop()
        parent = self._stack[-1] if self._stack else None

        def leave(index: int, tensor: Tensor) -> Tensor:
            flowing, value = visit(Place(frame.name, index, True), tensor, frame)
            if parent is not None:
                parent.sources.append(Source(f"output {index} of {frame.name}", flowing, value))
            return flowing

        output = _mapped(output, leave)
        if self.lifts:
            torch.set_grad_enabled(frame.had_grad)
        return output


def _mapped(value: Any, function: Callable[[int, Tensor], Tensor]) -> Any:
    """``value`` with its floating-point tensors, numbered in order, replaced."""
    number = 0

    def visit(part: Any) -> Any:
        nonlocal number
        if isinstance(part, Tensor):
            if not part.is_floating_point():
                return part
            number += 1
            return function(number - 1, part)
        # Of other containers nothing is replaced, so that nothing is cut there.
        if type(part) is dict:
            return {key: visit(inner) for key, inner in part.items()}
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*map(visit, part))
        return type(part)(map(visit, part)) if type(part) in (tuple, list) else part

    return visit(value)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(_: int, tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(value, note)
    return found
