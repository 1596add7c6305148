"""The fingerprint of a module without a card: whatever decides what it computes is in it."""

from __future__ import annotations

import builtins
import copy
import functools
import importlib
import operator
import subprocess
import sys
import threading
import types
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaign import campaign
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robench.errors import UsageError
from robench.models import load_checkpoint, wrap_module
from robench.models.code_identity import code_identity
from robench.records import InputSpec

INPUTS = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A linear network with an attribute to play with; always the same weights."""

    kept: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.fc(inputs.flatten(1))
        return logits


def _fingerprint(module: nn.Module) -> str:
    return wrap_module(module, num_classes=3, share=True).summary.fingerprint


class Setting:
    """An object of the user's own, kept in a module's attribute."""

    def __init__(self, power: float) -> None:
        self.power = power


class Slotted:
    """One whose attributes are in slots."""

    __slots__ = ("power",)

    def __init__(self, power: float) -> None:
        self.power = power


class Shape(Enum):
    ROUND = 1
    SQUARE = 2


Pair = namedtuple("Pair", ["first", "second"])


class OwnFloat(float):
    """A number that looks like any other of its kind."""

    def __repr__(self) -> str:
        return "a number"


class OwnDict(dict[str, float]):
    """A dictionary that says it is empty."""

    def items(self) -> Any:
        return {}.items()


def _scaling(factor: float) -> Any:
    return lambda logits: factor * logits


class Times(torch.autograd.Function):
    """A function with a backward pass of its own."""

    factor = 2.0

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return Times.factor * inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Times.factor * gradient


def _wrapped_like(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """A function that says it is another one."""

    @functools.wraps(function)
    def mine(*arguments: Any) -> Any:
        return factor * function(*arguments)

    return mine


# Kind → what makes an attribute of a number: two numbers are two attributes.
ATTRIBUTES: dict[str, Callable[[float], Any]] = {
    "number": lambda v: v,
    "own number": OwnFloat,
    "complex": lambda v: complex(0, v),
    "text": str,
    "bytes": lambda v: bytearray(str(v).encode()),
    "list": lambda v: [1.0, v],
    "nested": lambda v: {"a": [1.0, {"b": (v,)}]},
    "dictionary": lambda v: {"a": v},
    "own dictionary": lambda v: OwnDict(a=v),
    "order": lambda v: {v: 0, -1.0: 1},
    "ordered": lambda v: OrderedDict(a=v),
    "factory": lambda v: defaultdict(_scaling(v)),
    "set": lambda v: {v, "x", None},
    "named tuple": lambda v: Pair(1, v),
    "slice": lambda v: slice(None, Setting(v)),
    "tensor": torch.tensor,
    "sparse tensor": lambda v: torch.tensor([0.0, v + 1]).to_sparse(),
    "half tensor": lambda v: torch.tensor([v], dtype=torch.bfloat16),
    "array": lambda v: np.full(2, v),
    "object array": lambda v: np.array([v, None], dtype=object),
    "structured array": lambda v: np.array([(1, v)], dtype=[("a", "i4"), ("b", "f8")]),
    "masked array": lambda v: np.ma.masked_less(np.arange(9.0), v),
    "numpy number": np.float32,
    "object": Setting,
    "slots": Slotted,
    "namespace": lambda v: types.SimpleNamespace(m=v),
    "module in a list": lambda v: [nn.Threshold(v, 0.0)],
    "function": _scaling,
    "partial": lambda v: functools.partial(torch.sub, other=v),
    "function's own attribute": lambda v: _with_attribute(v),
    "default": lambda v: lambda logits, factor=v: logits * factor,
    "keyword default": lambda v: lambda logits, *, factor=v: logits * factor,
    "cached": lambda v: functools.lru_cache(_scaling(v)),
    "like another": lambda v: _wrapped_like(torch.relu, v),
    "bound": lambda v: types.MethodType(_scaling(v), 1),
    "bound object": lambda v: Setting(v).__eq__,
    "built-in of an object": lambda v: [v].index,
    "item": lambda v: operator.itemgetter(v),
    "vectorised": lambda v: np.vectorize(_scaling(v)),
    "class": lambda v: type("Own", (), {"m": v}),
    "property": lambda v: type("Own", (), {"m": property(_scaling(v))})(),
    "static": lambda v: type("Own", (), {"m": staticmethod(_scaling(v))})(),
    "cached property": lambda v: type("Own", (), {"m": functools.cached_property(_scaling(v))})(),
    "base": lambda v: type("Own", (type("Base", (), {"m": v}),), {})(),
    "metaclass": lambda v: type("Meta", (type,), {"__call__": _scaling(v)})("Own", (), {}),
}


def _with_attribute(value: float) -> Callable[..., Any]:
    function = _scaling(1.0)
    function.power = value
    return function


@functools.cache
def _without() -> str:
    return _fingerprint(Scaled())


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_every_attribute_of_a_wrapped_module_is_in_its_fingerprint(kind: str) -> None:
    found = [_without()]
    for value in (1.0, 1.0, 2.0):
        module = Scaled()
        module.kept = ATTRIBUTES[kind](value)  # in the module, no longer in its class
        found.append(_fingerprint(module))
    without, first, again, other = found
    assert first == again
    assert len({without, first, other}) == 3


# Kind → a module that computes something else for every number.
MODULES: dict[str, Callable[[float], nn.Module]] = {}


def _module(make: Callable[[float], nn.Module]) -> Callable[[float], nn.Module]:
    MODULES[make.__name__.strip("_")] = make
    return make


@_module
def _hook(v: float) -> nn.Module:
    module = Scaled()
    module.register_forward_hook(lambda _module, _inputs, out: v * out)
    return module


@_module
def _pre_hook_with_names(v: float) -> nn.Module:
    module = Scaled()
    module.register_forward_pre_hook(
        lambda _module, inputs, names: ((v * inputs[0],), names), with_kwargs=True
    )
    return module


@_module
def _closure(v: float) -> nn.Module:
    class Own(Scaled):
        def forward(self, inputs: Tensor) -> Tensor:
            return v * super().forward(inputs)

    return Own()


@_module
def _class_attribute(v: float) -> nn.Module:
    return type("Own", (Scaled,), {"factor": v, "forward": _forward_by_attribute})()


def _forward_by_attribute(self: Any, inputs: Tensor) -> Tensor:
    return self.factor * Scaled.forward(self, inputs)


@_module
def _inherited(v: float) -> nn.Module:
    base = type("Base", (Scaled,), {"forward": lambda self, x: v * Scaled.forward(self, x)})
    return type("Own", (base,), {})()


@_module
def _patched(v: float) -> nn.Module:
    module = Scaled()
    module.forward = types.MethodType(lambda self, x: v * Scaled.forward(self, x), module)
    return module


@_module
def _property(v: float) -> nn.Module:
    return type(
        "Own", (Scaled,), {"factor": property(lambda _: v), "forward": _forward_by_attribute}
    )()


@_module
def _looked_up(v: float) -> nn.Module:
    return type(
        "Own",
        (Scaled,),
        {
            "__getattr__": lambda self, name: (
                v if name == "factor" else nn.Module.__getattr__(self, name)
            ),
            "forward": _forward_by_attribute,
        },
    )()


@_module
def _list_of_modules(v: float) -> nn.Module:
    class Own(Scaled):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(self.parts[0](inputs))

    module, part = Own(), nn.Conv2d(1, 1, 1, bias=False)
    part.weight.data.fill_(v)
    module.parts = [part]  # not registered
    return module


@_module
def _order_of_shared_parts(v: float) -> nn.Module:
    first, second = Scaled(), nn.Threshold(v, v + 1.0)
    halve = nn.Threshold(100.0, 0.25)
    parts = (halve, second, halve) if v > 1 else (halve, second, second)
    return nn.Sequential(*parts, first)


@_module
def _tied_parameters(v: float) -> nn.Module:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)
            for factor, part in enumerate((self.a, self.b)):
                nn.init.constant_(part.weight, factor)
                nn.init.constant_(part.bias, factor)
            self.c = nn.Linear(4, 3)
            tied = self.a if v > 1 else self.b
            self.c.weight, self.c.bias = tied.weight, tied.bias

        def forward(self, inputs: Tensor) -> Tensor:
            return self.c(inputs.flatten(1))

    return Own()


@_module
def _traced(v: float) -> nn.Module:
    constant = torch.full((40,), v)  # large enough that its values are in no text of the graph

    class Own(Scaled):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * constant.mean()

    return torch.jit.trace(Own().eval(), INPUTS)


@_module
def _symbolic(v: float) -> nn.Module:
    class Own(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.flatten(1)[:, :3] * v

    return torch.fx.symbolic_trace(Own())


@_module
def _function_of_autograd(v: float) -> nn.Module:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor) -> Tensor:
            return v * inputs

    module = Scaled()
    module.register_forward_hook(lambda _m, _i, out: Own.apply(out))
    return module


@_module
def _parametrised(v: float) -> nn.Module:
    class Factor(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return v * weight

    module = Scaled()
    torch.nn.utils.parametrize.register_parametrization(module.fc, "weight", Factor())
    return module


@_module
def _stays_in_training(v: float) -> nn.Module:
    class Own(Scaled):
        def train(self, mode: bool = True) -> Own:
            self.training = v > 1  # whatever it is asked for
            return self

        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * (3.0 if self.training else 1.0)

    module = Own()
    module.training = v > 1
    return module


TRACING = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")


@TRACING
@pytest.mark.parametrize("kind", MODULES)
def test_modules_that_compute_something_else_have_another_fingerprint(kind: str) -> None:
    one, again, other = (MODULES[kind](v) for v in (1.0, 1.0, 2.0))
    assert not torch.equal(one(INPUTS), other(INPUTS))
    first = _fingerprint(one)
    assert first != _fingerprint(other)
    # Asking changes nothing, and neither do use, mode and copies.
    one(INPUTS)
    assert _fingerprint(one.train()) == first
    if kind == "traced":  # torch counts the names of what is traced in a process
        again = one
    assert _fingerprint(again) == first
    assert _fingerprint(copy.deepcopy(one)) == _fingerprint(copy.deepcopy(again))


SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.binary(max_size=5),
)
"""Plain values; equality of their texts is theirs."""

VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        inner.map(lambda v: types.SimpleNamespace(m=v)),
        inner.map(lambda v: Pair(v, 1)),
        inner.map(Slotted),
        inner.map(Setting),
    ),
    max_leaves=6,
)


def _described(value: Any) -> str:
    """An independent description of the generated values."""
    if isinstance(value, (types.SimpleNamespace, Setting)):
        return f"{type(value).__name__}{[(k, _described(v)) for k, v in vars(value).items()]}"
    if isinstance(value, Slotted):
        return f"Slotted({_described(value.power)})"
    if isinstance(value, dict):
        return f"dict{[(k, _described(v)) for k, v in value.items()]}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}{[_described(v) for v in value]}"
    return f"{type(value).__name__} {value!r}"


def _check_pair(one: Any, other: Any) -> None:
    assert code_identity(one) == code_identity(copy.deepcopy(one))
    same = _described(one) == _described(other)
    assert (code_identity(one).sha256 == code_identity(other).sha256) == same


@given(one=VALUES, other=VALUES)
@settings(deadline=None)
def test_two_values_share_an_identity_only_if_they_are_one(one: Any, other: Any) -> None:
    _check_pair(one, other)


@campaign(one=VALUES, other=VALUES)
def test_of_many_values_no_two_share_an_identity(one: Any, other: Any) -> None:
    _check_pair(one, other)


CASES = st.one_of(
    st.tuples(st.sampled_from(sorted(MODULES)), st.sampled_from([1.0, 2.0])),
    st.tuples(st.sampled_from(sorted(ATTRIBUTES)), st.integers(0, 8).map(float)),
)


def _built(case: tuple[str, float]) -> nn.Module:
    kind, value = case
    if kind in MODULES:
        return MODULES[kind](value)
    module = Scaled()
    module.kept = ATTRIBUTES[kind](value)
    return module


@TRACING
@campaign(one=CASES, other=CASES)
def test_of_many_modules_no_two_share_a_key(
    one: tuple[str, float], other: tuple[str, float]
) -> None:
    first, second = _built(one), _built(other)
    if one == other and one[0] != "traced":
        assert _fingerprint(first) == _fingerprint(second)
    elif one != other and (one[0] in ATTRIBUTES or _differ(first, second)):
        assert _fingerprint(first) != _fingerprint(second)


def _differ(one: nn.Module, other: nn.Module) -> bool:
    return not torch.equal(one(INPUTS), other(INPUTS))


def test_a_methods_patch_on_a_class_of_torch_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _fingerprint(Scaled())
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: -x @ self.weight.T)
    assert _fingerprint(Scaled()) != before
    monkeypatch.undo()
    assert _fingerprint(Scaled()) == before


def test_a_function_of_torchs_that_was_replaced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Scaled):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.nn.functional.relu(super().forward(inputs))

    before = _fingerprint(Own())
    monkeypatch.setattr(torch.nn.functional, "relu", lambda x: -x)
    assert _fingerprint(Own()) != before


@pytest.mark.parametrize(
    "replaced",
    [
        torch.nn.functional.gelu,
        torch.tanh,
        functools.partial(torch.nn.functional.leaky_relu, negative_slope=0.3),
        nn.Tanh(),
    ],
    ids=["another of its functions", "built in", "partial", "module"],
)
def test_whatever_replaces_a_function_of_torchs_is_seen(
    monkeypatch: pytest.MonkeyPatch, replaced: Any
) -> None:
    class Own(Scaled):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.nn.functional.relu(super().forward(inputs))

    before = code_identity(Own())
    assert code_identity(Own()) == before
    monkeypatch.setattr(torch.nn.functional, "relu", replaced)
    assert code_identity(Own()).sha256 != before.sha256


def test_methods_that_classes_of_torch_have_from_each_other_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(4, 2))
    before = code_identity(network)
    assert code_identity(network) == before
    monkeypatch.setattr(nn.ReLU, "forward", nn.Identity.forward)
    assert code_identity(network) != before
    monkeypatch.undo()
    monkeypatch.setattr(nn.Module, "__call__", lambda self, x: -self.forward(x))
    assert code_identity(network) != before


def test_a_hook_on_every_module_is_seen() -> None:
    before = code_identity(nn.ReLU())
    hook = nn.modules.module.register_module_forward_hook(lambda module, inputs, out: -out)
    try:
        assert code_identity(nn.ReLU()) != before
    finally:
        hook.remove()
    assert code_identity(nn.ReLU()) == before


def test_functions_in_c_that_forward_calls_are_found_again() -> None:
    class Own(Scaled):
        def forward(self, inputs: Tensor) -> Tensor:
            drawn = torch.from_numpy(np.random.rand(len(inputs))) + operator.neg(len(inputs))
            return super().forward(inputs) + drawn[:, None]

    first, again = code_identity(Own()), code_identity(Own())
    assert first == again
    assert not first.unique_because


def test_functions_in_c_that_a_class_holds_are_seen() -> None:
    def holding(function: Any) -> Any:
        class Own(Scaled):
            act = function

        return code_identity(Own())

    assert holding(torch.relu) == holding(torch.relu)
    found = {holding(f).sha256 for f in (torch.relu, torch.neg, torch.Tensor.abs, len)}
    assert len(found) == 4


def test_globals_that_forward_mentions_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Scaled):
        def forward(self, inputs: Tensor) -> Tensor:
            return Times.apply(super().forward(inputs))

    before = _fingerprint(Own())
    assert _fingerprint(Own()) == before
    monkeypatch.setattr(Times, "factor", 3.0)
    assert _fingerprint(Own()) != before


@pytest.mark.parametrize(
    "thing",
    [threading.Lock(), (number for number in range(3)), torch.zeros(1, device="meta")],
    ids=lambda thing: type(thing).__name__,
)
def test_what_cannot_be_looked_into_makes_a_fingerprint_that_is_never_the_same(thing: Any) -> None:
    module = Scaled()
    module.kept = {"inside": [thing]}
    assert _fingerprint(module) != _fingerprint(module)
    (flag,) = wrap_module(module, num_classes=3, share=True).remarks
    assert flag.name == "not_reusable"
    assert type(thing).__name__.lower() in flag.evidence
    assert "kept.inside" in flag.evidence


@pytest.mark.parametrize("with_fabric", [False, True])
def test_a_part_that_is_compiled_is_the_part(with_fabric: bool) -> None:
    def made(compiled: bool) -> nn.Module:
        part = Scaled()
        whole = torch.compile(part, backend="eager") if compiled else part
        if compiled and with_fabric:  # what torch.compile does once Lightning Fabric is imported
            whole._compile_kwargs = {"backend": "eager"}
            assert "_compile_kwargs" in vars(part)
        return nn.Sequential(whole)

    assert code_identity(made(True)) == code_identity(made(False))


class _Answers:
    """Raises at every attribute that it has not, as stand-ins of libraries do."""

    __slots__ = ("inside",)

    def __init__(self, inside: object) -> None:
        self.inside = inside

    def __getattr__(self, name: str) -> object:
        raise LookupError(name)

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        return type(self), (self.inside,)


class _Raises(_Answers):
    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        raise LookupError


def test_an_object_that_raises_when_it_is_asked_is_no_crash() -> None:
    one, same, other = (code_identity(_Answers(value)) for value in (1, 1, 2))
    assert one == same
    assert not one.unique_because
    assert one.sha256 != other.sha256
    never = code_identity(_Raises(1))
    assert never.unique_because == (f"a {__name__}._Raises",)
    assert never.sha256 != code_identity(_Raises(1)).sha256


def test_a_loaded_model_inside_a_module_has_an_identity() -> None:
    """Its card's classes hold constants that libraries pickle by their name."""
    network = wrap_module(nn.Linear(2, 2), num_classes=2, input=InputSpec(channels=1))
    assert not code_identity(nn.Sequential(network)).unique_because


def test_objects_nested_too_deeply_are_no_crash() -> None:
    nested: list[Any] = []
    for _ in range(5_000):
        nested = [nested]
    identity = code_identity(nested)
    assert "too deeply" in identity.unique_because[0]
    assert code_identity(nested) != identity


def _of_library(name: str) -> Any:
    """Made alike each time; all of the library's source is hashed for it."""
    import timm
    import torchvision

    torch.manual_seed(0)
    if name.startswith("test_"):
        return timm.create_model(name)
    if name == "swin":
        return torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=3)
    if name == "squeezenet":
        return torchvision.models.squeezenet1_1()
    return torchvision.transforms.Normalize([0.5], [0.25])


@pytest.mark.parametrize(
    "name",
    [
        *("test_vit", "swin", "normalize"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("test_resnet", "squeezenet")),
    ],
)
def test_modules_of_libraries_can_be_compared(name: str) -> None:
    one = code_identity(_of_library(name))
    assert code_identity(_of_library(name)) == one
    assert one.unique_because == ()


SOURCE = """import torch
from campaign import campaign
from torch import nn
{imported}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)
    def forward(self, inputs):
        return scale(self.a(inputs.flatten(1)))
def build():
    return Net()
"""


def test_the_code_of_weights_that_name_it_is_in_their_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own file, in one that it imports, and as it runs: an edit after the import is none."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "plain.pt")
    torch.save({f"a.{k}": v for k, v in nn.Linear(4, 3).state_dict().items()}, tmp_path / "own.pt")
    net, helper = tmp_path / "own_net_of_test.py", tmp_path / "own_helper_of_test.py"

    def fingerprint(fresh: bool = True) -> str:
        for name in ("own_net_of_test", "own_helper_of_test") if fresh else ():
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        loaded = load_checkpoint(
            tmp_path / "own.pt",
            "own_net_of_test:build",
            num_classes=3,
            input=InputSpec(channels=1),
        )
        return loaded.summary.fingerprint

    found = []
    for imported in (
        "scale = lambda x: x",
        "scale = lambda x: -x",
        "from own_helper_of_test import scale",
        "import own_helper_of_test as helper\ndef scale(x): return helper.scale(x)",
    ):
        helper.write_text("def scale(x): return x")
        net.write_text(SOURCE.format(imported=imported))
        found += [fingerprint()]
        assert fingerprint() == found[-1]
        if "helper" in imported:
            helper.write_text("def scale(x): return -x")
            found += [fingerprint()]
            net.write_text(SOURCE.format(imported="scale = lambda x: 2 * x"))
            # What was imported before the edit is what runs.
            found += [fingerprint(fresh=False)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("looks", "reason"),
    [("os.environ.get('HOME')", None), ("GATE.locked()", "a _thread.lock at GATE")],
    ids=["what it has looked up", "what it holds"],
)
def test_what_a_builder_looks_up_shows_in_its_network_and_what_it_holds_is_a_reason(
    looks: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_builder_of_test", raising=False)
    held = "import os, threading\nscale = lambda x: x\nGATE = threading.Lock()"
    source = SOURCE.format(imported=held)
    source = source.replace("return Net()", f"return Net() if {looks} else Net()")
    (tmp_path / "own_builder_of_test.py").write_text(source)
    torch.save({f"a.{k}": v for k, v in nn.Linear(4, 3).state_dict().items()}, tmp_path / "own.pt")
    loaded, again = (
        load_checkpoint(
            tmp_path / "own.pt",
            "own_builder_of_test:build",
            num_classes=3,
            input=InputSpec(channels=1),
        )
        for _ in range(2)
    )
    assert (loaded.summary.fingerprint == again.summary.fingerprint) == (reason is None)
    told = [flag.evidence for flag in loaded.remarks if flag.name == "not_reusable"]
    assert len(told) == len(loaded.remarks) == (reason is not None)
    assert all(str(reason) in evidence for evidence in told)


def test_the_order_of_a_set_is_no_part_of_an_identity() -> None:
    """8 falls on the place of 0: whichever came first is first."""
    network, other = nn.Identity(), nn.Identity()
    one, two = (frozenset(numbers) for numbers in ([0, 8], [8, 0]))
    assert [*one] != [*two]
    network.sets, other.sets = {"a": [one, set(one)]}, {"a": [two, set(two)]}
    assert code_identity(network).sha256 == code_identity(other).sha256


@pytest.mark.slow
def test_an_identity_is_the_same_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where strings have other hashes, and sets another order, than here."""
    (tmp_path / "own_network_of_test.py").write_text(
        "import numpy as np, types\n"
        "from torch import nn\n"
        "class Own(nn.Module):\n"
        "    def forward(self, x): return self.s['a'] * x\n"
        "m = Own()\n"
        "sets = {'x', 'y', 'z'}, {('a', 1), ('a', 2), ('b', frozenset('xyz'))}\n"
        "m.s = {'a': [np.arange(3), *sets], 'b': types.SimpleNamespace(c=lambda: 1)}\n"
        "m.register_forward_hook(lambda m, i, o: o)\n"
    )
    code = (
        "from own_network_of_test import m\n"
        "from robench.models.code_identity import code_identity\n"
        "found = code_identity(m)\n"
        "print(hash('x'), found.sha256, found.unique_because)\n"
    )
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": path},
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module("own_network_of_test").m
    here = code_identity(network)
    hashed, sha256, because = done.stdout.split()
    assert int(hashed) != hash("x")
    assert (sha256, because) == (here.sha256, "()")
    assert here.unique_because == ()


class Called:
    """Called as a function, and no function."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Any, *_: Any, **__: Any) -> Any:
        return self.factor * x

    def method(self, x: Any, *_: Any, **__: Any) -> Any:
        return self.factor * x

    @classmethod
    def of_class(cls, x: Any, *_: Any, **__: Any) -> Any:
        return 2 * x


@pytest.mark.parametrize("name", ["relu", "linear"])
def test_whatever_is_put_into_torch_is_in_the_key(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    found = {code_identity(network).sha256}
    put = [Called(2.0), Called(3.0), Called(4.0).method, Called.of_class]
    put += [functools.partial(Called(5.0).method), functools.partial(Called.of_class)]
    for value in put:
        monkeypatch.setattr(nn.functional, name, value)
        found.add(code_identity(network).sha256)
    assert len(found) == 1 + len(put)


@pytest.mark.parametrize(
    "kind", ["number", "dictionary", "list", "namespace", "callable", "bound", "class", "module"]
)
def test_whatever_is_put_among_pythons_names_is_in_the_key(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(value: float) -> Any:
        return {
            "number": value,
            "dictionary": {"by": value},
            "list": [value],
            "namespace": types.SimpleNamespace(by=value),
            "callable": Called(value),
            "bound": functools.partial(Called(value).method, 1.0),
            "class": type("Holder", (), {"by": value}),
            "module": nn.Threshold(value, 0.0),
        }[kind]

    class Own(Scaled):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) if put_by_a_test else inputs  # type: ignore[name-defined] # noqa: F821

    found = []
    for value in (1.0, 1.0, 2.0):
        monkeypatch.setattr(builtins, "put_by_a_test", made(value), raising=False)
        found.append(code_identity(Own()))
    assert found[0] == found[1] != found[2]
    assert not found[0].unique_because


def _as_it_is(graph: Any, examples: Any) -> Any:
    return graph.forward


def _otherwise(graph: Any, examples: Any) -> Any:
    return lambda *inputs: tuple(-out for out in graph(*inputs))


def _compiled(in_place: bool, backend: Any) -> nn.Module:
    module = Scaled()
    if not in_place:
        return torch.compile(module, backend=backend)  # type: ignore[return-value]
    module.compile(backend=backend)
    return module


@pytest.mark.parametrize("in_place", [False, True])
def test_a_backend_of_ones_own_is_part_of_the_model(in_place: bool) -> None:
    """It may compute anything, and a copy of the module would lose it."""
    inner = nn.Sequential(_compiled(in_place, _as_it_is))
    for module in (_compiled(in_place, _as_it_is), inner):
        with pytest.raises(UsageError, match="a backend of your own"):
            wrap_module(module, num_classes=3)
    backends = (_as_it_is, _as_it_is, _otherwise, functools.partial(_otherwise), "eager")
    found = [
        wrap_module(_compiled(in_place, backend), num_classes=3, share=True) for backend in backends
    ]
    one, same, *others = (model.summary.fingerprint for model in found)
    assert one == same
    assert len({one, *others}) == 4
    assert others[-1] == wrap_module(Scaled(), num_classes=3).summary.fingerprint
    assert not any(model.remarks for model in found)
